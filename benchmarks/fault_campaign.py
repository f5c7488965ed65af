"""One run folder that is tormented, fault after fault, and what came of it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.fault_injection import (
    WITHIN,
    Rank,
    command,
    die_within,
    fill,
    make_read_only,
    mount,
    session,
)
from mofore.checkpoint.format import list_checkpoints
from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint
from mofore.checkpoint.writer import META
from mofore.data.prepare import prepare
from mofore.data.synthetic import write_motion_videos
from mofore.parallel.engine import find_free_port

STEPS, EVERY, TIMEOUT = 24, 3, 10
RECIPE = (
    f"steps={STEPS}",
    f"checkpoint.every={EVERY}",
    f"engine.timeout={TIMEOUT}",
    "global_batch=8",
    "micro_batch=2",
    "backbone.embed_dim=48",
    "backbone.depth=2",
    "backbone.num_heads=3",
    "backbone.patch_size=8",
    "backbone.tubelet_size=2",
    "data.frames=4",
    "data.fps=12",
    "data.size=32",
    "data.targets=2",
    "data.gap.max=0.5",
    "forecaster.dim=48",
    "forecaster.depth=1",
    "forecaster.heads=3",
    "optimizer.warmup_steps=2",
    "collapse.every=6",
    "collapse.videos=4",
)
SIGNALS = ("SIGTERM", "SIGUSR2", "SIGINT")
DAMAGE = ("file deleted", "bit flipped", "file cut short", "checkpoint.json deleted")
KINDS = (
    *(f"one rank killed: {place}" for place in WITHIN),
    *(f"{name} to all" for name in SIGNALS),
    "second SIGINT to all",
    "all ranks killed",
    "worker killed",
    "one rank stopped",
    "disk full",
    "read-only disk",
    *DAMAGE,
)


class Campaign:
    """The run folder that is tormented, and what came of it."""

    def __init__(self, folder: Path, ranks: int, zero: int, seed: int) -> None:
        self.folder, self.ranks, self.rng = folder, ranks, random.Random(seed)
        self.runs, self.starts = 0, 0
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()  # the run ended before the fault could happen
        self.wrong: list[str] = []
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.mounted = mount(self.disk)
        self.run = self.disk / "run"
        in_child(lambda: _make_videos(folder))
        self.words = [
            *RECIPE,
            f"engine.zero_stage={zero}",
            f"data.manifest={folder / 'data' / 'manifest.parquet'}",
        ]
        with self.ranks_of(folder / "whole") as ranks_:
            self.expect_end(ranks_, 120)
        self.reference = _state(folder / "whole")

    def suffer(self, kind: str) -> None:
        """Start the ranks, let this fault happen, and see how they end."""
        if kind in DAMAGE:
            self.damage(kind)  # and see it go on, for a while
        before = _newest(self.run) if kind not in DAMAGE else 0
        if kind.startswith("one rank killed"):
            place, rank = kind.split(": ")[1], self.rng.randrange(self.ranks)
            if place in ("commit", "rename", "prune", "removal"):
                rank = 0  # who does it
            nth = self.rng.randint(1, {"write": 100, "rename": 4}.get(place, 6))
            with self.ranks_of(self.run, rank, lambda: die_within(place, nth)) as ranks:
                self.expect_end(ranks, 6 * TIMEOUT)
                happened = ranks[rank].code == -signal.SIGKILL
        elif kind == "disk full":
            with self.ranks_of(
                self.run, 0, lambda: fill(self.disk, self.mounted, self.rng.randint(1, 6))
            ) as ranks:
                self.expect_end(ranks, 60)
                happened = any(rank.code != 0 for rank in ranks)
            (self.disk / "filler").unlink(missing_ok=True)
        elif kind == "read-only disk":
            with self.ranks_of(self.run) as ranks:
                self.wait_for_steps(ranks, before + self.rng.randint(1, 6))
                checkpoints = self.run / "checkpoints"
                happened = checkpoints.is_dir() and make_read_only(checkpoints)
                self.expect_end(ranks, 60)
                if happened:
                    subprocess.run(["umount", checkpoints], check=True)
                    happened = any(rank.code != 0 for rank in ranks)
        else:
            words = ["workers=1"] if kind == "worker killed" else []
            with self.ranks_of(self.run, words=words) as ranks:
                self.wait_for_steps(ranks, before + self.rng.randint(1, 6))
                time.sleep(self.rng.random() * 0.3)
                happened = self.strike(kind, ranks)
                self.expect_end(ranks, 6 * TIMEOUT)
        if kind not in DAMAGE:
            (self.done if happened else self.missed)[kind] += 1
        newest = _newest(self.run)
        if newest < before:
            self.wrong.append(f"{kind}: the newest checkpoint went from step {before} to {newest}")
        if newest == STEPS:
            self.compare(kind)

    def strike(self, kind: str, ranks: list["Rank"]) -> bool:
        """Send the signals of a fault that comes from outside."""
        alive = [rank for rank in ranks if rank.alive]
        if kind == "worker killed":
            found = {pid: parent for rank in alive for pid, parent in session(rank.pid).items()}
            # children of the server
            workers = [pid for pid, parent in found.items() if parent in found]
            for pid in workers[:1]:
                os.kill(pid, signal.SIGKILL)
            return bool(workers)
        if kind == "one rank stopped":
            self.rng.choice(ranks).send(signal.SIGSTOP)
            return len(alive) == len(ranks)
        named = {"all ranks killed": "SIGKILL", "second SIGINT to all": "SIGINT"} | dict.fromkeys(
            DAMAGE, "SIGKILL"
        )
        name = named.get(kind, kind.split()[0])
        for rank in ranks:
            rank.send(signal.Signals[name])
        if kind == "second SIGINT to all":
            time.sleep(0.02)
            for rank in ranks:
                rank.send(signal.SIGINT)
        return bool(alive)

    def damage(self, kind: str) -> None:
        """Harm the newest checkpoint between two starts."""
        found = list_checkpoints(self.run)
        if len(found) < 2:  # one before it must be there to go back to
            self.missed[kind] += 1
            return
        folder = found[-1][1]
        path = (
            folder / META
            if "json" in kind
            else self.rng.choice(sorted(folder.glob("*.safetensors")))
        )
        if "deleted" in kind:
            path.unlink()
        elif "short" in kind:
            os.truncate(path, self.rng.randrange(path.stat().st_size))
        else:
            data = bytearray(path.read_bytes())
            data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
            path.write_bytes(data)
        self.done[kind] += 1

    def compare(self, kind: str) -> None:
        """The last step is reached: is it the undisturbed run, to the last bit? Then begin another."""
        state = _state(self.run)
        if state.keys() != self.reference.keys():
            self.wrong.append(f"{kind}: other tensors at the end")
        apart = [
            name for name in self.reference if not torch.equal(state[name], self.reference[name])
        ]
        if apart:
            self.wrong.append(
                f"{kind}: {len(apart)} tensors differ at the end, {apart[0]} among them"
            )
        steps = [
            json.loads(line)["step"]
            for line in (self.run / "metrics.jsonl").read_text().splitlines()
        ]
        if steps != list(range(1, STEPS + 1)):
            self.wrong.append(f"{kind}: metrics.jsonl has the steps {steps}")
        shutil.rmtree(self.run)
        self.runs += 1

    def finish(self) -> None:
        """Let the last run reach its end, undisturbed."""
        with self.ranks_of(self.run) as ranks:
            self.expect_end(ranks, 120)
        if _newest(self.run) == STEPS:
            self.compare("at the end")
        else:
            self.wrong.append(f"the last run ends at step {_newest(self.run)}: {_tail(self.log)}")

    @contextlib.contextmanager
    def ranks_of(
        self,
        run: Path,
        cursed: int = -1,
        curse: Callable[[], None] = lambda: None,
        words: list[str] | None = None,
    ) -> Iterator[list["Rank"]]:
        """The ranks of a run, started; `curse` is called in one of them before it begins. None is left at the end."""
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(find_free_port()),
            "WORLD_SIZE": str(self.ranks),
        }
        self.log = self.folder / "ranks.log"
        self.starts += 1
        all_words = [*self.words, f"run_dir={run}", "workers=0", *(words or [])]
        ranks = []
        for number in range(self.ranks):
            environment = common | {"RANK": str(number), "LOCAL_RANK": str(number)}
            ranks.append(
                Rank(all_words, environment, self.log, curse if number == cursed else lambda: None)
            )
        try:
            yield ranks
        finally:
            for rank in ranks:
                rank.send(signal.SIGKILL)
                rank.wait(10)
            left = [pid for rank in ranks for pid in session(rank.pid)]
            end = time.monotonic() + 10
            while left and time.monotonic() < end:
                time.sleep(0.1)
                left = [pid for pid in left if Path(f"/proc/{pid}").exists()]
            if left:
                self.wrong.append(f"processes are left behind: {[command(pid) for pid in left]}")

    def wait_for_steps(self, ranks: list["Rank"], step: int) -> None:
        """Until metrics.jsonl has that step, or a rank has ended."""
        path, end = self.run / "metrics.jsonl", time.monotonic() + 60
        while all(rank.alive for rank in ranks) and time.monotonic() < end:
            if path.exists() and path.read_bytes().count(b"\n") >= min(step, STEPS):
                return
            time.sleep(0.02)

    def expect_end(self, ranks: list["Rank"], seconds: float) -> None:
        """All ranks that are not stopped end by themselves within so many seconds."""
        end = time.monotonic() + seconds
        for rank in ranks:
            if not rank.stopped and not rank.wait(max(0.1, end - time.monotonic())):
                self.wrong.append(
                    f"rank {ranks.index(rank)} still runs after {seconds} s: {_tail(self.log)}"
                )


def _make_videos(folder: Path) -> None:
    write_motion_videos(folder / "videos", textures=3, frames=32)
    prepare(folder / "videos", folder / "data", workers=1)


def in_child(work: Callable[[], object]) -> None:
    """This process itself must stay without threads, for it is forked."""
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("the videos could not be made")


def _state(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(run / "checkpoints" / f"step-{STEPS}")
    return {name: checkpoint.tensor(name) for name in checkpoint.shapes}


def _newest(run: Path) -> int:
    """Step of the newest whole checkpoint: one that a fault before damaged does not count."""
    newest, _ = find_latest_checkpoint(run)
    return newest.step if newest else 0


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])
