"""Interrupted runs on a real SLURM end with the weights of the undisturbed run."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster.conftest import LONG, User, ended, job_of, log_of, state_of, step_of, until
from tests.cluster.slurm import Cluster, output_of
from tests.small import differing, distance, state

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STEPS = 300


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, from first step to last."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    job = User(manifest).pretrain(run)
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    return run


def starts(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "jobs/starts.jsonl").read_text().splitlines()]


def same(run: Path, other: Path) -> bool:
    return not differing(state(run, STEPS), state(other, STEPS))


def under_way(run: Path, job: str, step: int = 40) -> None:
    until(lambda: step_of(run) >= step, 120, lambda: log_of(run, job) + output_of("squeue"))


def preempt(*options: str) -> None:
    """Submit a short job of higher priority that takes the whole cluster."""
    subprocess.run(
        [
            "sbatch",
            "--partition=high",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            *options,
            "--wrap=sleep 1",
        ],
        check=True,
        capture_output=True,
    )


@pytest.mark.parametrize("partition", ["low", "patient"])
def test_preempted_job_saves_is_requeued_and_resumes(
    partition: str, user: User, undisturbed: Path, tmp_path: Path
) -> None:
    """SIGTERM, without a grace time and with one; submitit alone ignores it."""
    run = tmp_path / "run"
    job = user.pretrain(run, f"cluster.partition={partition}", "workers=1")
    under_way(run, job)
    preempt()
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    assert len(starts(run)) == 2
    assert "Stopped by SIGTERM" in log_of(run, job)
    assert same(run, undisturbed)


def test_time_limit(user: User, undisturbed: Path, tmp_path: Path) -> None:
    """SLURM sends SIGUSR2 before the limit. It checks twice a minute: the run is paused so long."""
    run = tmp_path / "run"
    job = user.pretrain(run, "engine.timeout=300")
    under_way(run, job, 10)
    os.kill(json.loads((run / "owner.json").read_text())["pid"], signal.SIGSTOP)
    set_limit(job, 1)  # SLURM sends SIGCONT with its signal
    until(lambda: "the job is requeued" in log_of(run, job), 120, lambda: log_of(run, job))
    set_limit(job, 10)
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    assert "Stopped by SIGUSR2" in log_of(run, job)
    assert len(starts(run)) == 2
    assert same(run, undisturbed)


def set_limit(job: str, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)


def test_operator_requeues(user: User, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = user.pretrain(run)
    under_way(run, job)
    (line,) = (
        line.split() for line in user.mofore("jobs", run).stdout.splitlines() if "RUNNING" in line
    )
    assert line[:3] == ["run", job, "RUNNING"]
    assert float(line[4]) > 1  # samples a second
    subprocess.run(["scontrol", "requeue", job], check=True)
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    assert [start["restart"] for start in starts(run)] == [0, 1]
    (line,) = (
        line.split() for line in user.mofore("jobs", run).stdout.splitlines() if "COMPLETED" in line
    )
    assert line[3:6] == ["300/300", line[4], "1"]  # step, loss, restarts
    assert same(run, undisturbed)


def test_two_nodes_of_two_ranks_train_the_model_of_one_node_of_four(
    user: User, tmp_path: Path
) -> None:
    few = ("steps=12", "checkpoint.every=6", "engine.zero_stage=2")
    jobs = {}
    for name, shape in {
        "two": ("cluster.nodes=2", "cluster.tasks_per_node=2"),
        "one": ("cluster.tasks_per_node=4",),
    }.items():
        jobs[name] = user.pretrain(tmp_path / name, *shape, *few)
        assert ended(tmp_path / name, jobs[name]) == "COMPLETED", log_of(
            tmp_path / name, jobs[name]
        )
    (start,) = starts(tmp_path / "two")
    assert start["nodes"] == ["node1", "node2"]
    assert start["tasks"] == 4
    assert not differing(state(tmp_path / "two", 12), state(tmp_path / "one", 12))
    # every rank has its own log; that of rank 0 has the progress, one line at a time
    assert all(log_of(tmp_path / "two", jobs["two"], rank) for rank in range(4))
    assert "step 12/12" in log_of(tmp_path / "two", jobs["two"]).replace("\r", "\n")


def test_lost_node_and_elastic_resume(
    cluster: Cluster, user: User, undisturbed: Path, tmp_path: Path
) -> None:
    """A node loses power. Submitted with --nodes=1-2, the run resumes on the remaining node."""
    run = tmp_path / "run"
    job = user.pretrain(run, "cluster.nodes=1-2", "engine.timeout=25")
    under_way(run, job)
    cluster.kill_node("node2")
    try:
        assert ended(run, job) == "COMPLETED", log_of(run, job)
    finally:
        cluster.start_node("node2")
        until(
            lambda: output_of("sinfo", "-h", "-p", "low", "-o", "%T %D") == "idle 2",
            60,
            lambda: output_of("sinfo"),
        )
    assert [start["tasks"] for start in starts(run)] == [2, 1]
    weights = [name for name in state(run, STEPS) if name.startswith("weights/")]
    assert distance(state(run, STEPS), state(undisturbed, STEPS), weights) < 1e-2
    assert "rank 1" in log_of(run, job)  # the other rank names the lost one


def test_node_that_restarts(
    cluster: Cluster, user: User, undisturbed: Path, tmp_path: Path
) -> None:
    """The only node of a run loses power, without a signal to the run, and is started again."""
    run = tmp_path / "run"
    job = user.pretrain(run, "cluster.nodelist=node2")
    under_way(run, job)
    cluster.kill_node("node2")
    cluster.start_node("node2")
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    assert len(starts(run)) == 2
    assert same(run, undisturbed)


def test_repeated_crash_is_not_requeued(user: User, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = user.pretrain(
        run, "cluster.max_failures=2", "cluster.prologue=export PYTHONHOME=/nowhere"
    )
    assert ended(run, job) == "FAILED"
    log = log_of(run, job)
    assert "not requeued: 2 starts in a row ended without a new checkpoint" in log
    assert f"mofore resume {run}" in log
    assert output_of("scontrol", "show", "job", job).count("Restarts=1") == 1


def test_user_error_is_not_requeued(user: User, tmp_path: Path) -> None:
    """The run folder is that of another run: the job reports it once."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("steps: 7\ndata: {manifest: elsewhere}\n")
    job = user.pretrain(run)
    assert ended(run, job) == "FAILED"
    assert "run folder of another configuration" in log_of(run, job)
    assert "Restarts=0" in output_of("scontrol", "show", "job", job)


def test_cancelled_job_stays_cancelled_and_resumes_on_request(
    user: User, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    job = user.pretrain(run)
    under_way(run, job, 10)
    assert user.mofore("cancel", run).returncode == 0
    assert ended(run, job) == "CANCELLED"
    shown = user.mofore("jobs", run).stdout
    assert job in shown
    assert "CANCELLED" in shown
    until(lambda: "Stopped by SIGTERM" in log_of(run, job), 30, lambda: log_of(run, job))
    until(lambda: state_of(job) == "CANCELLED", 30)
    refused = user.mofore("resume", run, "optimizer.lr=1")
    assert refused.returncode == 2
    assert "optimizer.lr decides what" in refused.stderr
    done = user.mofore("resume", run, "cluster.time=20m", "checkpoint.every=50")
    assert done.returncode == 0, done.stderr
    again = job_of(done)
    assert ended(run, again) == "COMPLETED", log_of(run, again)
    assert same(run, undisturbed)
    assert "step 300/300" in user.mofore("logs", run).stdout

    # without accounting, the state comes from the run folder
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/squeue").symlink_to(shutil.which("squeue"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "COMPLETED" in user.mofore("jobs", run).stdout


assert str(STEPS) in LONG[0]
