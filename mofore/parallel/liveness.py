"""Ranks that fall silent, make no progress or diverge end the run; the message names them.

Heartbeat           one thread per rank reports that it lives and what it does; another ends a rank
                    that would wait forever. Rank 0 checks all ranks, the others check rank 0.
check_ranks_agree   every n steps the ranks compare what must be equal on all of them
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

from mofore.errors import EXIT_RESUMABLE, UserError
from mofore.parallel.collectives import (
    all_gather_objects,
    get_rank,
    get_world_size,
    unique_token,
)

logger = logging.getLogger(__name__)
RESUME_HINT = "Rerun the same command to resume."


class RankLost(Exception):
    """A peer rank died, hangs, or cannot be reached."""


class Heartbeat:
    """Context around training.

    A rank that is silent, or in one activity, for `timeout` seconds ends the run.

    `set_activity` says what this rank does next. A collective that fails because a peer is gone
    raises RankLost. Two threads: one talks to the store where the ranks met, and hangs if the
    store's host does; the other never blocks.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.period = timeout, min(5.0, timeout / 5)
        self.patience = timeout  # seconds of silence; shorter once a collective has failed
        self.activity, self.since = "is starting", time.monotonic()
        self.activities = self.beats = 0
        self.last_report: dict[
            int, tuple[bytes, float]
        ] = {}  # of each rank, and when it was first seen
        self.verdict: str | None = None
        self.store_answered = time.monotonic()
        self.stopped = threading.Event()
        self.exiting = False  # the main thread ends the run
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Heartbeat":
        if get_world_size() > 1:
            self._connect()
            self._start_thread(self._exchange)
        self.store_answered = self.since = time.monotonic()
        self._start_thread(self._monitor)
        return self

    def _start_thread(self, target: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=target, daemon=True))
        self.threads[-1].start()

    def _connect(self) -> None:
        with rendezvous(self.timeout):
            # A connection of its own: that of the process group is busy while a rank waits.
            self.address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            timeout = timedelta(seconds=self.timeout)
            store = dist.TCPStore(*self.address, is_master=False, timeout=timeout)
            self.store = dist.PrefixStore(f"mofore-heartbeat-{unique_token()}", store)
            self._report()
            dist.barrier()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.exiting = True
        if get_world_size() > 1 and isinstance(error, RuntimeError) and _is_collective(error):
            self.patience, end = 2.5 * self.period, time.monotonic() + 4 * self.period
            # Ranks that live still report: wait to learn which one does not.
            while self.verdict is None and time.monotonic() < end:
                time.sleep(self.period / 10)
            self.stopped.set()
            reason = f"a rank cannot be reached: {str(error).splitlines()[0]}"
            raise RankLost(self.verdict or reason) from None
        self.stopped.set()
        for (
            thread
        ) in self.threads:  # one inside the store while Python exits would abort the process
            thread.join(self.timeout)

    def pause(self) -> None:
        """Stop watching for good: what follows involves this rank alone and may take any time."""
        self.stopped.set()

    def set_activity(self, activity: str) -> None:
        """What this rank does next: a verb phrase for messages, "waits for data"."""
        self.activities += 1
        self.activity, self.since = activity, time.monotonic()

    def _monitor(self) -> None:
        while not self.stopped.wait(self.period / 2):
            now = time.monotonic()
            if get_world_size() == 1 and now - self.since > self.timeout:
                self.verdict = f"it {self.activity} for {now - self.since:.0f} s"
            elif get_world_size() > 1 and now - self.store_answered > self.patience:
                address = ":".join(map(str, self.address))
                silence = now - self.store_answered
                self.verdict = (
                    f"no answer from {address} (rank 0 or its launcher) for {silence:.0f} s"
                )
            if self.verdict and not self.exiting:
                logger.error("Rank %d stops: %s. %s", get_rank(), self.verdict, RESUME_HINT)
                os._exit(EXIT_RESUMABLE)

    def _exchange(self) -> None:
        while not self.stopped.wait(self.period):
            try:
                self._report()
                if get_rank() == 0:
                    verdict = self._check(range(1, get_world_size()))
                    if verdict:
                        self.store.set("verdict", verdict)
                elif self.store.check(["verdict"]):
                    verdict = self.store.get("verdict").decode()
                else:
                    verdict = self._check([0])
                self.store_answered = time.monotonic()
            except (
                RuntimeError
            ) as error:  # includes dist.DistStoreError: the store died with its rank
                verdict = f"rank 0, which holds the store, is gone: {str(error).splitlines()[0]}"
            self.verdict = self.verdict or verdict

    def _report(self) -> None:
        self.beats += 1
        seconds = time.monotonic() - self.since
        report = json.dumps([self.beats, self.activities, self.activity, seconds])
        self.store.set(str(get_rank()), report)

    def _check(self, ranks: Iterable[int]) -> str | None:
        """Which ranks have been silent, or else in the same activity, for too long."""
        now = time.monotonic()
        state: dict[int, tuple[int, str, float]] = {
            get_rank(): (self.activities, self.activity, now - self.since)
        }
        silent = []
        for rank in ranks:
            report = self.store.get(str(rank))
            if report != self.last_report.get(rank, (b"", 0.0))[0]:
                self.last_report[rank] = report, now
            elif now - self.last_report[rank][1] > self.patience:
                silent.append(str(rank))
            state[rank] = tuple(json.loads(report)[1:])
        if silent:
            names = f"rank {', '.join(silent)}"
            return f"no heartbeat from {names} for {self.patience:.0f} s: dead, stopped or cut off"
        stuck = {rank: each for rank, each in state.items() if each[2] > self.timeout}
        if not stuck:
            return None
        last = min(activities for activities, _, _ in stuck.values())  # the others wait for these
        return "; ".join(
            f"rank {rank} {activity} for {seconds:.0f} s"
            for rank, (activities, activity, seconds) in stuck.items()
            if activities == last
        )


@contextlib.contextmanager
def rendezvous(timeout: float) -> Iterator[None]:
    """Before the heartbeat runs: raise RankLost if a rank does not join, leaves or hangs.

    A client of the store waits forever for a host that is stopped, so after twice the timeout this
    process exits.
    """
    timer = threading.Timer(2 * timeout, _exit_unmet, [2 * timeout])
    timer.daemon = True
    timer.start()
    try:
        yield
    except RuntimeError as error:
        if not _is_collective(error):
            raise
        reason = str(error).splitlines()[0]
        raise RankLost(f"not all ranks joined, or one left during start-up: {reason}") from error
    finally:
        timer.cancel()


def _exit_unmet(seconds: float) -> None:
    rank, address = (os.environ.get(name, "?") for name in ("RANK", "MASTER_ADDR"))
    logger.error(
        "Rank %s stops: the ranks have not met at %s within %.0f s: one is stopped or cut off. %s",
        rank,
        address,
        seconds,
        RESUME_HINT,
    )
    os._exit(EXIT_RESUMABLE)


def _is_collective(error: RuntimeError) -> bool:
    """Whether a collective raised the error: gloo raises plain RuntimeErrors."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "connection", "nccl")
    )


def check_ranks_agree(step: int, facts: dict[str, object]) -> None:
    """A collective.

    Raises UserError on every rank if one rank's facts differ, naming rank and fact.
    """
    reports = all_gather_objects(json.dumps({"step": step, **facts}))
    if len(set(reports)) == 1:
        return
    (common, votes), *_ = Counter(reports).most_common(1)
    remedy = (
        ". Nothing after the last checkpoint is kept. Check that machine (memory errors, another "
        f"version of code or data). {RESUME_HINT}"
    )
    if votes * 2 <= len(reports):
        all_reports = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reports))
        raise UserError(f"Step {step}: the ranks have diverged: {all_reports}{remedy}")
    expected = json.loads(common)
    differing = [
        f"rank {rank} in {_differences(json.loads(text), expected)}"
        for rank, text in enumerate(reports)
        if text != common
    ]
    raise UserError(f"Step {step}: {'; '.join(differing)} differs from the other ranks{remedy}")


def _differences(facts: dict[str, object], expected: dict[str, object]) -> str:
    return ", ".join(
        f"{key} ({value}, not {expected[key]})"
        for key, value in facts.items()
        if expected.get(key) != value
    )
