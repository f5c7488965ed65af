"""One cluster for all tests here, and a user at its login node."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster.slurm import Cluster, as_user_error, missing
from tests.ranks import REPOSITORY

# 300 steps of some hundredths of a second: long enough to be hit on the way
LONG = (
    "steps=300",
    "global_batch=4",
    "workers=0",
    "checkpoint.every=25",
    "collapse.every=0",
    "backbone.embed_dim=48",
    "backbone.depth=2",
    "backbone.num_heads=3",
    "backbone.patch_size=8",
    "backbone.tubelet_size=2",
    "data.frames=4",
    "data.fps=12",
    "data.size=32",
    "data.targets=1",
    "data.gap.max=0.5",
    "forecaster.dim=48",
    "forecaster.depth=1",
    "forecaster.heads=3",
    "engine.timeout=90",
)
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.signal_delay=30", "cluster.time=10m")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if "slurm" not in os.environ.get("MOFORE_REQUIRE", ""):
        pytest.skip(
            "untested here: submission, requeues and sweeps on a real SLURM. It starts daemons as root and takes ten "
            "minutes: MOFORE_REQUIRE=slurm make test"
        )
    assert missing() is None, missing()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class User(NamedTuple):
    """Types commands, and looks at what comes of them."""

    manifest: Path

    def submit(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.types("launch/submit.py", *words)

    def mofore(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.types("-m", "mofore.launch.cli", *words)

    def types(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | own,
        )

    def pretrain(self, run: Path, *words: str) -> str:
        """Submit LONG to the cluster; returns the id of its job."""
        done = self.submit(
            *SLURM, *LONG, f"data.manifest={self.manifest}", f"run_dir={run}", *words
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.split(":")[0].removeprefix("job ")


@pytest.fixture
def user(cluster: Cluster, manifest: Path) -> Iterator[User]:
    yield User(manifest)
    subprocess.run(["scancel", "--me"], check=False)
    until(lambda: as_user_error("squeue", "--noheader") == "", 60)


def until(
    holds: Callable[[], bool], seconds: float = 180, say: Callable[[], str] = lambda: ""
) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, say() or f"did not happen within {seconds} s"
        time.sleep(0.2)


def step_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def state_of(job: str) -> str:
    """SLURM's word for it, from accounting."""
    lines = as_user_error("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").splitlines()
    return lines[-1].split()[0] if lines else "NONE"


def log_of(run: Path, job: str, rank: int = 0) -> str:
    path = run / "jobs" / f"{job}_{rank}_log.out"
    return path.read_text() if path.exists() else ""


def ended(run: Path, job: str, seconds: float = 240) -> str:
    """Wait for the end of a job, hastening what waits for its delay after a requeue; returns its state."""
    seen: list[float] = []  # since when it looks ended

    def over() -> bool:
        waiting = as_user_error(
            "squeue", "--noheader", "--states=PENDING", f"--jobs={job}", "--format=%r"
        )
        if "BeginTime" in waiting:  # SLURM lets a requeued job wait for two minutes
            # not at once: SLURM tells two starts of a job apart by the second, and refuses to start it then
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3"], check=False)
            time.sleep(4)
        if (
            as_user_error("squeue", "--noheader", f"--jobs={job}", "--format=%T")
            or state_of(job) not in ENDS
        ):
            seen.clear()
            return False
        # on its way back into the queue a job looks failed for a moment
        seen.append(time.monotonic())
        return seen[-1] - seen[0] > 4

    until(
        over,
        seconds,
        lambda: as_user_error("scontrol", "show", "job", job) + log_of(run, job)[-3000:],
    )
    return state_of(job)
