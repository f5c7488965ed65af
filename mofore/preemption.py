"""A signal asks the run to stop; the run finishes its step, saves, and leaves.

A handler only raises a flag. The ranks agree on it once a step, so that they all save the same step: a save
inside a handler would wait for ranks that never come.

SLURM and Ctrl-C signal every process of a run. A rank's workers must outlive the signal, or the rank waits in
vain for the batch that its last step needs.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
GRACE = 60  # seconds that a worker outlives SIGTERM


class StopRequest:
    """Context: within it, the first stop signal is noted in `name`; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


def live_and_die_with(rank_process: int, _worker: int) -> None:
    """In a worker, at its start: stop signals do not end it at once. It ends with its rank, even a killed one."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A rank that dies of an error sends SIGTERM too, and waits for its workers: let that wait have an end.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
    # Workers are children of a server that starts them, so a killed rank is not their parent, and nobody tells them.
    threading.Thread(target=_end_after, args=(rank_process,), daemon=True).start()


def _end_after(process: int) -> None:
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        os._exit(1)
    select.select([descriptor], [], [])  # readable once the process has ended
    os._exit(1)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Programs started within ignore stop signals: that is inherited, where a handler is not."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
