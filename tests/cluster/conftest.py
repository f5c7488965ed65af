"""One SLURM cluster for all tests here, and the commands of a user at its login node."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cluster.slurm import Cluster, missing, output_of
from tests.ranks import REPOSITORY
from tests.small import TINY

# 300 steps of some hundredths of a second: long enough to be interrupted
LONG = (
    "steps=300",
    "global_batch=4",
    "workers=0",
    "checkpoint.every=25",
    "collapse.every=0",
    *TINY,
    "data.targets=1",
    "engine.timeout=90",
)
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SLURM = ("cluster=slurm", "cluster.cpus_per_task=1", "cluster.signal_delay=30", "cluster.time=10m")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if "slurm" not in os.environ.get("MOFORE_REQUIRE", ""):
        pytest.skip(
            "untested here: submission, requeues and sweeps on a real SLURM. It starts daemons as "
            "root and takes ten minutes: MOFORE_REQUIRE=slurm make test"
        )
    assert missing() is None, missing()
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def job_of(submitted: subprocess.CompletedProcess[str]) -> str:
    """The id in the first line, "job ID: ..."."""
    return submitted.stdout.split(":")[0].removeprefix("job ")


class User(NamedTuple):
    """Runs commands as at a login node."""

    manifest: Path

    def submit(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        return self._run("launch/submit.py", *argv)

    def mofore(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        return self._run("-m", "mofore.launch.cli", *argv)

    def _run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
        return subprocess.run(
            [sys.executable, *map(str, argv)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | own,
        )

    def pretrain(self, run: Path, *keys: str) -> str:
        """Submit LONG to the cluster; returns the id of its job."""
        submitted = self.submit(
            *SLURM, *LONG, f"data.manifest={self.manifest}", f"run_dir={run}", *keys
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        return job_of(submitted)


@pytest.fixture
def user(cluster: Cluster, manifest: Path) -> Iterator[User]:
    yield User(manifest)
    subprocess.run(["scancel", "--me"], check=False)
    until(lambda: output_of("squeue", "--noheader") == "", 60)


def until(
    condition: Callable[[], bool],
    seconds: float = 180,
    describe: Callable[[], str] = lambda: "",
) -> None:
    """Wait for the condition; AssertionError with `describe` after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, describe() or f"did not happen within {seconds} s"
        time.sleep(0.2)


def step_of(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def state_of(job: str) -> str:
    """The state of the job in SLURM's accounting."""
    lines = output_of("sacct", "-X", "-n", "-P", "-j", job, "-o", "State").splitlines()
    return lines[-1].split()[0] if lines else "NONE"


def log_of(run: Path, job: str, rank: int = 0) -> str:
    path = run / "jobs" / f"{job}_{rank}_log.out"
    return path.read_text() if path.exists() else ""


def ended(run: Path, job: str, seconds: float = 240) -> str:
    """Wait for the end of a job, without SLURM's delay after a requeue; returns its state."""
    ended_since: list[float] = []  # when it was first seen ended

    def is_over() -> bool:
        waiting = output_of(
            "squeue", "--noheader", "--states=PENDING", f"--jobs={job}", "--format=%r"
        )
        if "BeginTime" in waiting:  # SLURM delays a requeued job by two minutes
            # not at once: SLURM tells starts of a job apart by the second, and refuses the same one
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3"], check=False)
            time.sleep(4)
        queued = output_of("squeue", "--noheader", f"--jobs={job}", "--format=%T")
        if queued or state_of(job) not in ENDS:
            ended_since.clear()
            return False
        # a job that is being requeued looks failed for a moment
        ended_since.append(time.monotonic())
        return ended_since[-1] - ended_since[0] > 4

    def describe() -> str:
        return output_of("scontrol", "show", "job", job) + log_of(run, job)[-3000:]

    until(is_over, seconds, describe)
    return state_of(job)
