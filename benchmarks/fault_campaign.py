"""One run folder under repeated faults, compared with an undisturbed run at its last step."""

import contextlib
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.fault_injection import mount_tmpfs
from benchmarks.fault_processes import (
    POLL,
    RankProcess,
    command_line,
    run_in_fork,
    session_processes,
)
from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint
from mofore.data.prepare import prepare
from mofore.data.synthetic import write_motion_videos
from mofore.files import read_jsonl
from mofore.parallel.engine import find_free_port

STEPS, EVERY, TIMEOUT = 24, 3, 10  # of the run, between two saves, engine.timeout in seconds
UNDISTURBED_SECONDS = 120  # within which a run without faults must end
LEFTOVER_SECONDS = 10  # within which the processes of a dead rank must end
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


class Campaign:
    """Starts the ranks of one run again and again, and checks how they end.

    happened, missed: faults by kind; missed are those before which the run had ended. violations:
    what should not have happened, one sentence each. completed: runs that reached the last step.
    """

    def __init__(self, folder: Path, ranks: int, zero_stage: int, seed: int) -> None:
        self.folder, self.ranks, self.rng = folder, ranks, random.Random(seed)
        self.completed, self.starts = 0, 0
        self.happened: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.violations: list[str] = []
        self.disk, self.log = folder / "disk", folder / "ranks.log"
        self.disk.mkdir()
        self.mounted = mount_tmpfs(self.disk)
        self.run_dir = self.disk / "run"
        run_in_fork(lambda: _write_videos(folder))
        manifest = folder / "data" / "manifest.parquet"
        self.overrides = [*RECIPE, f"engine.zero_stage={zero_stage}", f"data.manifest={manifest}"]
        with self.start_ranks(folder / "undisturbed") as started:
            self.expect_end(started, UNDISTURBED_SECONDS)
        self.reference = _read_state(folder / "undisturbed")

    def check(self, kind: str, before: int) -> None:
        """After a fault: no checkpoint is lost, and a run at its last step equals the reference."""
        newest = newest_step(self.run_dir)
        if newest < before:
            self.violations.append(f"{kind}: newest checkpoint of step {before}, now {newest}")
        if newest == STEPS:
            self.compare(kind)

    def compare(self, kind: str) -> None:
        """Compare the completed run with the reference, bit for bit, and remove it."""
        state = _read_state(self.run_dir)
        if state.keys() != self.reference.keys():
            self.violations.append(f"{kind}: the last checkpoint has other tensors")
        else:
            differing = [
                name for name in state if not torch.equal(state[name], self.reference[name])
            ]
            if differing:
                self.violations.append(
                    f"{kind}: {len(differing)} tensors differ, the first is {differing[0]}"
                )
        steps = [line["step"] for line in read_jsonl(self.run_dir / "metrics.jsonl")]
        if steps != list(range(1, STEPS + 1)):
            self.violations.append(f"{kind}: metrics.jsonl has the steps {steps}")
        shutil.rmtree(self.run_dir)
        self.completed += 1

    def finish(self) -> None:
        """Let the last run reach its end, undisturbed."""
        with self.start_ranks(self.run_dir) as ranks:
            self.expect_end(ranks, UNDISTURBED_SECONDS)
        newest = newest_step(self.run_dir)
        if newest == STEPS:
            self.compare("after the last fault")
        else:
            self.violations.append(f"the last run ends at step {newest}: {_tail(self.log)}")

    @contextlib.contextmanager
    def start_ranks(
        self,
        run_dir: Path,
        faulty_rank: int = -1,
        inject: Callable[[], None] = lambda: None,
        overrides: tuple[str, ...] = (),
    ) -> Iterator[list[RankProcess]]:
        """The started ranks of a run; at the end all are killed and none may leave a process.

        inject: called in the faulty rank before it starts.
        """
        self.starts += 1
        env = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(find_free_port()),
            "WORLD_SIZE": str(self.ranks),
        }
        argv = [*self.overrides, f"run_dir={run_dir}", "workers=0", *overrides]
        ranks = []
        for rank in range(self.ranks):
            own = env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            hook = inject if rank == faulty_rank else lambda: None
            ranks.append(RankProcess(argv, own, self.log, hook))
        try:
            yield ranks
        finally:
            for process in ranks:
                process.send(signal.SIGKILL)
                process.wait(LEFTOVER_SECONDS)
            self._check_leftovers(ranks)

    def _check_leftovers(self, ranks: list[RankProcess]) -> None:
        """Zombies do not count: whether an orphan is reaped depends on the machine's init."""
        end = time.monotonic() + LEFTOVER_SECONDS
        while left := [pid for process in ranks for pid in session_processes(process.pid)]:
            if time.monotonic() > end:
                commands = [command_line(pid) for pid in left]
                self.violations.append(f"processes are left behind: {commands}")
                return
            time.sleep(0.1)

    def wait_for_step(self, ranks: list[RankProcess], step: int) -> None:
        """Until metrics.jsonl has so many lines, or a rank has ended."""
        path, end = self.run_dir / "metrics.jsonl", time.monotonic() + 60
        while all(process.running for process in ranks) and time.monotonic() < end:
            if path.exists() and path.read_bytes().count(b"\n") >= min(step, STEPS):
                return
            time.sleep(POLL)

    def expect_end(self, ranks: list[RankProcess], seconds: float) -> None:
        """All ranks that are not stopped end by themselves within so many seconds."""
        end = time.monotonic() + seconds
        for rank, process in enumerate(ranks):
            if not process.stopped and not process.wait(max(0.1, end - time.monotonic())):
                self.violations.append(
                    f"rank {rank} still runs after {seconds} s: {_tail(self.log)}"
                )


def newest_step(run_dir: Path) -> int:
    """Step of the newest undamaged checkpoint; 0 if there is none."""
    checkpoint, _ = find_latest_checkpoint(run_dir)
    return checkpoint.step if checkpoint else 0


def _write_videos(folder: Path) -> None:
    write_motion_videos(folder / "videos", textures=3, frames=32)
    prepare(folder / "videos", folder / "data", workers=1)


def _read_state(run_dir: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(run_dir / "checkpoints" / f"step-{STEPS}")
    return {name: checkpoint.tensor(name) for name in checkpoint.shapes}


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])
