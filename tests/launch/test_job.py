"""The shell around a job's ranks, without SLURM; tests/cluster runs it on a real one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mofore.launch.cluster import ClusterConfig
from mofore.launch.job import Job, _master_port, setup, teardown


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder that has been trained for 4 steps, and a queue in which its job is running."""
    run = tmp_path / "a run"
    (run / "jobs").mkdir(parents=True)
    (run / "checkpoints/step-4").mkdir(parents=True)
    for name, text in {"squeue": "echo RUNNING", "scontrol": "echo scontrol $*"}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    return run


def start(run: Path, ranks: str, **keys: object) -> subprocess.CompletedProcess[str]:
    """Run setup, the shell command `ranks` in place of the ranks, and teardown."""
    cluster = ClusterConfig(executor="slurm", **keys)  # type: ignore[arg-type]
    lines = setup(cluster, Path("/code"), [Path("/other"), run])
    script = "\n".join([*lines, ranks, *teardown(cluster)])
    path = f"{run.parent / 'bin'}:{os.environ['PATH']}"
    own = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "PATH": path, "PYTHONPATH": "/mine"}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | own, check=False
    )


@pytest.mark.parametrize("code", [0, 2])
def test_done_and_user_errors_end_the_job(code: int, run: Path) -> None:
    done = start(run, f"(exit {code})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert not list((run / "jobs").iterdir())


@pytest.mark.parametrize("code", [75, 1, 137])
def test_other_codes_requeue_it(code: int, run: Path) -> None:
    done = start(run, f"mkdir '{run}/checkpoints/step-10'; (exit {code})")
    assert done.returncode == code
    assert f"the ranks ended with exit code {code}; the job is requeued" in done.stdout
    assert "scontrol requeue 7" in done.stdout
    assert not list((run / "jobs").iterdir())


def test_repeated_failures_without_a_checkpoint(run: Path) -> None:
    """A new checkpoint resets the count."""
    fails, saves = "(exit 1)", f"mkdir '{run}/checkpoints/step-10'; (exit 1)"
    outputs = [start(run, ranks, max_failures=2).stdout for ranks in (fails, saves, fails, fails)]
    assert ["scontrol requeue" in output for output in outputs] == [True, True, True, False]
    assert "not requeued: 2 starts in a row ended without a new checkpoint" in outputs[-1]
    assert "(last exit code 1, step 10)" in outputs[-1]
    assert f"mofore resume {run}" in outputs[-1]


def test_cancelled_job_is_not_requeued(run: Path) -> None:
    (run.parent / "bin/squeue").write_text("#!/bin/sh\necho CANCELLED\n")
    done = start(run, "(exit 75)")
    assert (done.returncode, done.stdout) == (75, "")


def test_environment_of_the_ranks(run: Path) -> None:
    names = "PYTHONPATH PYTHONSAFEPATH MOFORE_RUN_JOBS NCCL_SOCKET_IFNAME SRUN_CPUS_PER_TASK MINE"
    ranks = " ".join(["echo", *(f'"${name}"' for name in names.split())])
    keys = {"network_interface": "ib0", "prologue": "MINE=1\nMINE=2"}
    assert start(run, ranks, **keys).stdout == f"/code:/mine 1 {run}/jobs ib0 1 2\n"


def test_port_changes_with_the_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = _master_port("7")
    assert first == _master_port("7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert _master_port("7") != first
    assert 20000 <= first < 32768


def test_signal_before_the_run(tmp_path: Path) -> None:
    """A job that is preempted while it imports is resumable."""
    code = (
        "import signal, os\nfrom mofore.launch import job\n"
        "job.run_command = lambda argv: os.kill(os.getpid(), signal.SIGTERM)\n"
        "import submitit\n"
        f"executor = submitit.AutoExecutor({str(tmp_path)!r}, cluster='debug')\n"
        f"executor.submit(job.{Job(['pretrain'])!r}).result()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert f"mofore: {signal.SIGTERM.name} before the first step" in done.stdout
