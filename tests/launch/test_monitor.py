"""jobs, logs, cancel, resume and submit without a cluster: on a laptop."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mofore.checkpoint.format import list_checkpoints
from mofore.config import expand_sweep
from mofore.errors import UserError
from mofore.launch.cli import main
from mofore.launch.cluster import ClusterConfig
from mofore.launch.submit import main as submit
from tests.ranks import REPOSITORY
from tests.small import SMALL, differing, state

Run = Callable[..., Path]


@pytest.fixture
def stopped(run_small: Run, tmp_path: Path) -> Path:
    """A run of four steps that was stopped after its second."""
    run = run_small(tmp_path / "runs/mine")
    shutil.copytree(run, tmp_path / "whole")
    shutil.rmtree(run / "checkpoints/step-4")
    return run


def test_jobs_shows_local_runs(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["jobs", str(tmp_path)]) == 0
    mine, whole = (
        line
        for line in capsys.readouterr().out.splitlines()
        if "runs/mine" in line or "whole" in line
    )
    assert "STOPPED" in mine
    assert "2, 0 s ago" in mine or "2, 1 s ago" in mine
    assert "COMPLETED" in whole
    assert "4/4" in whole


def test_resume_continues_a_local_run(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["resume", str(stopped), "seed=1"]) == 2
    assert "seed decides what" in capsys.readouterr().err
    assert main(["resume", str(stopped), "workers=many"]) == 2
    assert "workers" in capsys.readouterr().err
    assert list_checkpoints(stopped)[-1][0] == 2
    assert main(["resume", str(stopped), "checkpoint.keep_last=5"]) == 0
    assert not differing(state(stopped, 4), state(tmp_path / "whole", 4))


def test_cancel_lets_a_local_run_save(
    manifest: Path, tmp_path: Path, environment: None, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    keys = [*SMALL, "steps=100000", f"data.manifest={manifest}", f"run_dir={run}"]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "mofore.launch.cli", "pretrain", *keys],
        cwd=REPOSITORY,
        env=own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 120
        while not list_checkpoints(run) and time.monotonic() < end:
            time.sleep(0.1)
        assert main(["jobs", str(run)]) == 0
        assert "RUNNING" in capsys.readouterr().out
        assert submit(["cluster=local", *keys]) == 2
        assert f"in use by process {process.pid}" in capsys.readouterr().err
        assert main(["cancel", str(run)]) == 0
        _, log = process.communicate(timeout=60)
    assert "Stopped by SIGTERM" in log
    assert process.returncode == 75
    assert main(["cancel", str(run)]) == 0
    assert "nothing to cancel" in capsys.readouterr().out


@pytest.mark.slow
def test_sweep_on_this_machine(manifest: Path, tmp_path: Path) -> None:
    """Both runs, both evaluations, one comparison; a second call repeats nothing."""
    root = tmp_path / "sweep"
    argv = [
        "cluster=local",
        *SMALL,
        f"data.manifest={manifest}",
        f"run_dir={root}",
        "seed=0,1",
        "evaluate.workers=0",
        "evaluate.bootstrap_resamples=20",
        "evaluate.knn_k=3",
        "--multirun",
    ]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "launch/submit.py", *argv]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=own, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    compared = json.loads((root / "compare.json").read_text())
    assert {each["encoder"] for each in compared["results"]} == {
        "seed=0",
        "seed=0, untrained",
        "seed=1",
        "seed=1, untrained",
    }
    shown = subprocess.run(
        [sys.executable, "-m", "mofore.launch.cli", "logs", str(root / "seed=1")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "knn" in shown.lower()


def test_no_sbatch(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (
        submit(
            ["cluster=slurm", *SMALL, f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]
        )
        == 2
    )
    message = capsys.readouterr().err
    assert "there is no sbatch on the path" in message
    assert "login node" in message


def test_first_video_is_opened(
    motion_videos: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first = sorted(motion_videos.rglob("*.mp4"))[0]
    first.rename(first.with_suffix(".gone"))
    try:
        code = submit(
            ["cluster=slurm", *SMALL, f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]
        )
    finally:
        first.with_suffix(".gone").rename(first)
    assert code == 2
    assert f"{first}, the first video of {manifest}, cannot be opened" in capsys.readouterr().err


TIMES = {
    "90": 5400,
    "90m": 5400,
    "24h": 86400,
    "2d12h": 216000,
    "1:30": 90,
    "1:30:00": 5400,
    "1-12": 129600,
    "1-12:30": 131400,
    "2-0:0:1": 172801,
}


@pytest.mark.parametrize("time_", TIMES)
def test_times(time_: str) -> None:
    assert ClusterConfig(time=time_, signal_delay=0).seconds == TIMES[time_]


@pytest.mark.parametrize("time_", ["", "h", "24 hours", "1:2:3:4", "-1"])
def test_invalid_times(time_: str) -> None:
    with pytest.raises(UserError, match=r"cluster\.time"):
        ClusterConfig(time=time_)


def test_sweep_combinations() -> None:
    assert expand_sweep(["backbone=a,b", "steps=3", "seed=0,1"]) == [
        (["steps=3"], ["backbone=a", "seed=0"]),
        (["steps=3"], ["backbone=a", "seed=1"]),
        (["steps=3"], ["backbone=b", "seed=0"]),
        (["steps=3"], ["backbone=b", "seed=1"]),
    ]
    with pytest.raises(UserError, match="several values"):
        expand_sweep(["steps=3", "optimizer.betas=[0.9,0.95]"])
