"""Ranks that fall silent, stop moving, or drift apart end the run, with a sentence that names them.

Heartbeat   a thread a rank: tells the others that it lives and what it is at, and ends a rank that would wait
            for ever. Rank 0 looks at all, the others look at rank 0 and at what it says.
agree       every n steps: the ranks compare what must be equal on all of them
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from types import TracebackType

import torch.distributed as dist

from mofore.distributed import gather_objects, rank, run_token, world
from mofore.errors import UserError

LOST = 75  # EX_TEMPFAIL: nothing is wrong with the run, the same command goes on


class RankLost(Exception):
    """Another rank died, hangs, or cannot be reached."""


class Heartbeat:
    """Context of the training. `timeout` seconds without a sign of life, or at one and the same thing, end the run.

    Inside, `at(word)` says what this rank begins to do. A collective that fails for want of a rank leaves as
    RankLost. Two threads: one talks to the store that the ranks met at, and hangs if its host does; one never waits.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self.period = timeout, min(5.0, timeout / 5)
        self.patience = timeout  # seconds of silence; shorter once something is known to be wrong
        self.word, self.since = "starting", time.monotonic()
        self.moves = self.beats = 0
        self.heard: dict[int, tuple[bytes, float]] = {}  # what a rank last said, and when it was first heard
        self.verdict: str | None = None
        self.answered = time.monotonic()  # when the store last did
        self.ended = threading.Event()
        self.leaving = False  # the main thread ends the run
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Heartbeat":
        if world() > 1:
            self._meet()
            self._start(self._talk)
        self.answered = self.since = time.monotonic()
        self._start(self._watch)
        return self

    def _start(self, work: Callable[[], None]) -> None:
        self.threads.append(threading.Thread(target=work, daemon=True))
        self.threads[-1].start()

    def _meet(self) -> None:
        with meeting(self.timeout):
            # A connection of its own: that of the process group is busy while a rank waits.
            self.place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(*self.place, is_master=False, timeout=timedelta(seconds=self.timeout))
            self.store = dist.PrefixStore(f"mofore-beats-{run_token()}", store)
            self._tell()
            dist.barrier()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.leaving = True
        if world() > 1 and isinstance(error, RuntimeError) and _is_of_ranks(error):
            self.patience, end = 2.5 * self.period, time.monotonic() + 4 * self.period
            # those that live still tell so: who does not?
            while self.verdict is None and time.monotonic() < end:
                time.sleep(self.period / 10)
            self.ended.set()
            raise RankLost(
                self.verdict or f"a rank cannot be reached: {str(error).splitlines()[0]}"
            ) from None
        self.ended.set()
        for thread in self.threads:  # one that is in the store while Python ends would end it by SIGABRT
            thread.join(self.timeout)

    def rest(self) -> None:
        """What follows is this rank's own business, and may take its time."""
        self.ended.set()

    def at(self, word: str) -> None:
        """This rank begins to do something else."""
        self.moves += 1
        self.word, self.since = word, time.monotonic()

    def _watch(self) -> None:
        while not self.ended.wait(self.period / 2):
            now = time.monotonic()
            if world() == 1 and now - self.since > self.timeout:
                self.verdict = f"it {self.word} for {now - self.since:.0f} s"
            elif world() > 1 and now - self.answered > self.patience:
                where = ":".join(map(str, self.place))
                self.verdict = f"no answer from {where} for {now - self.answered:.0f} s, where rank 0 or its launcher lives"
            if self.verdict and not self.leaving:
                print(f"mofore: rank {rank()} stops: {self.verdict}", file=sys.stderr, flush=True)
                os._exit(LOST)

    def _talk(self) -> None:
        while not self.ended.wait(self.period):
            try:
                self._tell()
                if rank() == 0:
                    said = self._look(range(1, world()))
                    if said:
                        self.store.set("verdict", said)
                elif self.store.check(["verdict"]):
                    said = self.store.get("verdict").decode()
                else:
                    said = self._look([0])
                self.answered = time.monotonic()
            except RuntimeError as reason:  # dist.DistStoreError among them: the store died with its rank
                said = f"rank 0, where the ranks meet, is gone: {str(reason).splitlines()[0]}"
            self.verdict = self.verdict or said

    def _tell(self) -> None:
        self.beats += 1
        at_it = time.monotonic() - self.since
        self.store.set(str(rank()), json.dumps([self.beats, self.moves, self.word, at_it]))

    def _look(self, others: Iterable[int]) -> str | None:
        """Which ranks have been silent, or else at the same thing, for too long."""
        now = time.monotonic()
        at: dict[int, tuple[int, str, float]] = {rank(): (self.moves, self.word, now - self.since)}
        silent = []
        for other in others:
            said = self.store.get(str(other))
            if said != self.heard.get(other, (b"", 0.0))[0]:
                self.heard[other] = said, now
            elif now - self.heard[other][1] > self.patience:
                silent.append(str(other))
            at[other] = tuple(json.loads(said)[1:])
        if silent:
            names = f"rank {', '.join(silent)}"
            return f"no sign of life from {names} for {self.patience:.0f} s: dead, stopped or cut off"
        still = {number: place for number, place in at.items() if place[2] > self.timeout}
        if not still:
            return None
        last = min(moves for moves, _, _ in still.values())  # the others wait for these
        return "; ".join(
            f"rank {number} {word} for {at_it:.0f} s"
            for number, (moves, word, at_it) in still.items()
            if moves == last
        )


@contextlib.contextmanager
def meeting(timeout: float) -> Iterator[None]:
    """Where ranks meet and none is watched yet: one that does not come, leaves or hangs is a RankLost.

    A client of the store waits without end for a host that is stopped, so after twice the timeout this process ends.
    """
    give_up = threading.Timer(2 * timeout, _give_up, [2 * timeout])
    give_up.daemon = True
    give_up.start()
    try:
        yield
    except RuntimeError as error:
        if not _is_of_ranks(error):
            raise
        raise RankLost(
            f"not all ranks came, or one left again, while the run began: {str(error).splitlines()[0]}"
        ) from error
    finally:
        give_up.cancel()


def _give_up(seconds: float) -> None:
    number, place = (os.environ.get(name, "?") for name in ("RANK", "MASTER_ADDR"))
    print(
        f"mofore: rank {number} stops: the ranks have not met at {place} within {seconds:.0f} s: one is stopped or cut off. "
        "The same command goes on.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


def _is_of_ranks(error: RuntimeError) -> bool:
    """Whether an error comes from a collective: gloo raises plain RuntimeErrors."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in said or "connection" in said or "nccl" in said


def agree(step: int, facts: dict[str, object]) -> None:
    """A collective. UserError on every rank where the facts of one differ from the others', naming rank and fact."""
    own = json.dumps({"step": step, **facts})
    said = gather_objects(own)
    if len(set(said)) == 1:
        return
    (common, votes), *_ = Counter(said).most_common(1)
    if votes * 2 <= len(said):
        raise UserError(f"step {step}: the ranks have drifted apart: " + "; ".join(
            f"rank {number} has {text}" for number, text in enumerate(said)) + _REMEDY)  # fmt: skip
    usual = json.loads(common)
    apart = [
        f"rank {number} in " + ", ".join(f"{key} ({value}, not {usual[key]})" for key, value in json.loads(text).items()
                                         if usual.get(key) != value)
        for number, text in enumerate(said) if text != common
    ]  # fmt: skip
    raise UserError(f"step {step}: {'; '.join(apart)} differs from the other ranks" + _REMEDY)


_REMEDY = (
    ". Nothing after the last checkpoint is kept. Look at that machine (memory errors, another version of the code "
    "or data); then the same command goes on."
)
