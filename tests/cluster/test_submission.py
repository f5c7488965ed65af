"""launch/submit.py on a real SLURM: errors, output, the snapshot of the code, sweeps."""

import json
from pathlib import Path

import pytest

from mofore.launch.submit import main
from tests.cluster.conftest import LONG, SLURM, User, ended, job_of, log_of, state_of, until
from tests.cluster.slurm import output_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
FEW = ("steps=4", "checkpoint.every=2", "workers=0")

MISTAKES = {
    "partition": (["cluster.partition=nowhere"], "there are low, patient, high, short"),
    "nodes": (["cluster.nodes=3", "global_batch=6"], "has 2 node(s)"),
    "range of nodes": (["cluster.nodes=2-1"], "cluster.nodes=2-1"),
    "longer than the partition": (
        ["cluster.partition=short", "cluster.time=6m"],
        "longer than partition short allows (5",
    ),
    "time": (["cluster.time=tomorrow"], "write 90m, 24h"),
    "no time left to train": (
        ["cluster.time=2m", "cluster.signal_delay=120"],
        "leaves no time to train",
    ),
    "account": (["cluster.account=nobody"], "cluster.account=..."),
    "processors": (["cluster.cpus_per_task=64"], "cluster.cpus_per_task"),
    "accelerators": (["cluster.gpus_per_node=8", "global_batch=8"], "cluster.gpus_per_node"),
    "constraint": (["cluster.constraint=moon"], "cluster.constraint"),
    "option": (["cluster.sbatch_args=nice"], "'nice' is not an option"),
    "unknown option": (["cluster.sbatch_args=--nicest=1"], "man sbatch"),
    "batch over a range": (
        ["cluster.nodes=1-2", "cluster.tasks_per_node=3"],
        "global_batch=4 does not divide",
    ),
    "key": (["stepz=1"], "stepz"),
    "task": (["task=dream"], "pretrain, evaluate, prepare"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_reported_and_nothing_is_submitted(
    mistake: str, user: User, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, message = MISTAKES[mistake]
    code = main(
        [*SLURM, *LONG, f"data.manifest={user.manifest}", f"run_dir={tmp_path / 'run'}", *argv]
    )
    captured = capsys.readouterr()
    assert code == 2, captured.out
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert output_of("squeue", "--noheader") == ""
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(user: User, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = user.submit(
        *SLURM, *LONG, f"data.manifest={user.manifest}", f"run_dir={tmp_path / 'file/run'}"
    )
    assert done.returncode == 2
    assert "cannot be written to" in done.stderr


def test_dry_run_submits_nothing(user: User, tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = [
        "cluster.nodes=2",
        "cluster.tasks_per_node=2",
        "cluster.account=lab",
        "cluster.sbatch_args=--nice=7 --exclusive",
        "cluster.srun_args=--mpi=none",
        "cluster.network_interface=lo",
        "cluster.prologue=module load cuda",
    ]
    done = user.submit(
        *SLURM, *LONG, f"data.manifest={user.manifest}", f"run_dir={run}", *argv, "--dry-run"
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --account=lab",
        "#SBATCH --nice=7",
        "#SBATCH --signal=USR2@30",
        "--mpi=none",
        "GLOO_SOCKET_IFNAME=lo",
        "module load cuda",
        "global_batch: 4",
        "embed_dim: 48",
    ):
        assert line in done.stdout, line
    assert not run.exists()
    assert output_of("squeue", "--noheader") == ""


def test_job_runs_the_code_of_its_submission(user: User, tmp_path: Path) -> None:
    """A second submission to the same run folder is refused, and names the job that uses it."""
    run = tmp_path / "run"
    job = user.pretrain(run, *FEW, "cluster.sbatch_args=--hold")
    (code,) = (run / "jobs/code").iterdir()
    trains = code / "mofore/train.py"
    trains.write_text(trains.read_text() + '\nprint("the copy of the code", __file__)\n')
    again = user.submit(*SLURM, *LONG, f"data.manifest={user.manifest}", f"run_dir={run}")
    assert again.returncode == 2
    assert f"has a job already: pretrain, job {job}" in again.stderr
    output_of("scontrol", "release", job)
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    assert f"the copy of the code {trains}" in log_of(run, job)
    commit = json.loads((run / "environment.json").read_text())["commit"]
    assert commit == json.loads((code / "snapshot.json").read_text())["commit"]


def test_prepare_and_evaluate_in_jobs(user: User, motion_videos: Path, tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    lists = [str(motion_videos / name) for name in ("trainlist01.txt", "testlist01.txt")]
    done = user.submit("prepare", motion_videos, "--out", data, "--split", *lists, *SLURM)
    assert done.returncode == 0, done.stderr
    job = job_of(done)
    assert ended(data, job) == "COMPLETED", log_of(data, job)
    job = User(data / "manifest.parquet").pretrain(run, *FEW)
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    done = user.submit(*SLURM, "evaluate", run, "workers=0", "bootstrap_resamples=20", "knn_k=3")
    assert done.returncode == 0, done.stderr
    job = job_of(done)
    assert ended(run, job) == "COMPLETED", log_of(run, job)
    assert (run / "evaluation/results.json").exists()


def test_sweep_shows_failures_and_runs_what_is_missing(user: User, tmp_path: Path) -> None:
    """Two sizes. The second finds the run folder of another run, until that is removed."""
    root = tmp_path / "sweep"
    occupied = root / "backbone=compact"
    occupied.mkdir(parents=True)
    (occupied / "config.yaml").write_text(f"steps: 7\ndata: {{manifest: {user.manifest}}}\n")
    keys = [key for key in LONG if not key.startswith("backbone.")]
    argv = [
        *SLURM,
        *keys,
        *FEW,
        "data.frames=8",
        f"data.manifest={user.manifest}",
        f"run_dir={root}",
        "backbone=micro,compact",
        "evaluate.workers=0",
        "evaluate.bootstrap_resamples=20",
        "evaluate.knn_k=3",
        "--multirun",
    ]
    done = user.submit(*argv)
    assert done.returncode == 0, done.stderr
    ids = [
        line.split(":")[0].removeprefix("job ")
        for line in done.stdout.splitlines()
        if line.startswith("job ")
    ]
    assert len(ids) == 5  # two elements of an array, two evaluations, the comparison
    assert [each.endswith(f"_{i}") for i, each in enumerate(ids[:2])] == [True, True]
    state = ended(root, ids[4], 300)
    assert [state_of(each) for each in ids[:4]] == ["COMPLETED", "FAILED", "COMPLETED", "CANCELLED"]
    assert state == "FAILED"  # the comparison lacks a run
    shown = (root / "compare.txt").read_text()
    assert "backbone=micro" in shown
    assert "backbone=compact: no results: pretrain FAILED" in shown
    assert "run folder of another configuration" in shown

    assert "FAILED" in user.mofore("jobs", root).stdout
    (occupied / "config.yaml").unlink()
    done = user.submit(*argv)
    lines = [line for line in done.stdout.splitlines() if line.startswith("job ")]
    assert len(lines) == 3, done.stdout + done.stderr
    assert "backbone=micro" not in done.stdout
    last = lines[-1].split(":")[0].removeprefix("job ")
    assert ended(root, last, 300) == "COMPLETED", (root / "compare.txt").read_text()
    assert json.loads((root / "compare.json").read_text())["failures"] == {}
    assert "nothing is missing" in user.submit(*argv).stdout


def test_partly_refused_sweep_leaves_no_job(user: User, tmp_path: Path) -> None:
    """The account may have two jobs: SLURM accepts the array, refuses the evaluations, and the
    array is cancelled.
    """
    root = tmp_path / "sweep"
    argv = [
        *SLURM,
        *LONG,
        f"data.manifest={user.manifest}",
        f"run_dir={root}",
        "backbone.depth=1,2",
        "--multirun",
    ]
    limit = ["sacctmgr", "-i", "modify", "user", "root", "set"]
    output_of(*limit, "maxsubmitjobs=2")
    try:
        done = user.submit(*argv, "cluster.sbatch_args=--hold")
    finally:
        output_of(*limit, "maxsubmitjobs=-1")
    assert done.returncode == 2, done.stdout
    assert "submit limit" in done.stderr
    until(lambda: output_of("squeue", "--noheader") == "", 30)
    logs = [*root.rglob("jobs.jsonl")]
    assert len(logs) == 2
    assert not any(log.read_text() for log in logs)
