"""A signal asks the run to stop; the run finishes its step, saves, and exits.

The handler only sets a flag. The ranks agree on it once per step, so that all of them save the same
step: a collective save inside a handler would deadlock.

SLURM and Ctrl-C signal every process of a run. A rank's workers must outlive the signal, or the
rank waits forever for the batch that its last step needs.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
WORKER_GRACE = 60  # seconds that a worker outlives SIGTERM


class StopRequest:
    """Context: the first stop signal sets `name`; a second SIGINT raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __enter__(self) -> "StopRequest":
        self.previous = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def init_worker_signals(rank_pid: int, _worker: int) -> None:
    """At a worker's start: it outlives stop signals, and ends when its rank ends."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A rank that fails sends SIGTERM too and waits for its workers: end that wait after a while.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_GRACE))
    # Workers are children of the fork server, so a killed rank is not their parent and no signal
    # reaches them.
    threading.Thread(target=_exit_after, args=(rank_pid,), daemon=True).start()


def _exit_after(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)
    select.select([descriptor], [], [])  # readable once the process has ended
    os._exit(1)


@contextlib.contextmanager
def children_ignore_stop_signals() -> Iterator[None]:
    """Programs started inside ignore stop signals: children inherit SIG_IGN, but not a handler."""
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
