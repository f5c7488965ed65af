"""The private parts of submitit that launch uses: each test names the change that breaks it."""

import inspect
import signal
from pathlib import Path

import pytest
import submitit
from submitit.core import utils
from submitit.slurm import slurm

from mofore.launch.cluster import ClusterConfig
from mofore.launch.job import Job, setup, teardown
from mofore.launch.slurm import sbatch_parameters, sbatch_script


def parameters(**keys: str) -> dict:
    cluster = ClusterConfig(executor="slurm", **keys)  # type: ignore[arg-type]
    lines = setup(cluster, Path("code"), [Path("run")]), teardown(cluster)
    return sbatch_parameters(cluster, *lines, dependency="afterok:1")


def test_make_sbatch_string_takes_our_parameters(tmp_path: Path) -> None:
    """`_make_sbatch_string` is private: --dry-run and `sbatch --test-only` use it. A renamed
    parameter, or one that is no longer printed, shows here.
    """
    known = inspect.signature(slurm._make_sbatch_string).parameters
    assert set(parameters(mem="1G", partition="p")) <= set(known)
    script = sbatch_script(ClusterConfig(executor="slurm"), parameters(nodes="1-2"), tmp_path)
    for line in ("--nodes=1-2", "--requeue", "--signal=USR2@120", "--dependency=afterok:1"):
        assert f"#SBATCH {line}" in script
    # ours before srun, then srun, then ours
    order = [script.index(part) for part in ("newest_step()", "\nsrun ", "scontrol requeue")]
    assert order == sorted(order)


def test_the_checked_script_is_the_submitted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module that runs a job, `submitit.core._submit`, and the form of its command are private;
    the script that is checked differs from the submitted one if they change.
    """
    monkeypatch.setattr(slurm.shutil, "which", lambda _: "/bin/srun")
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(**parameters())
    submitted = executor._make_submission_file_text(executor._submitit_command_str, "uid")
    assert sbatch_script(ClusterConfig(), parameters(), tmp_path) == submitted


def test_logs_are_named_by_rank(tmp_path: Path) -> None:
    """`mofore logs --rank` and jobs.jsonl rely on JOB_RANK_log.out."""
    paths = utils.JobPaths(tmp_path, "7")
    assert paths.stdout.name == "7_0_log.out"
    script = sbatch_script(ClusterConfig(), parameters(), tmp_path)
    assert f"{tmp_path}/%j_%t_log.out" in script


def test_a_signal_before_the_job_calls_checkpoint() -> None:
    """submitit calls `checkpoint`, in newer releases `__submitit_checkpoint__`, of the submitted
    function. A third name would lose a job that is preempted while it starts.
    """
    delayed = utils.DelayedSubmission(Job(["pretrain", "steps=1"]))
    again = delayed._checkpoint_function()
    assert again is not None
    assert again.function == Job(["pretrain", "steps=1"])
    assert "checkpoint" in inspect.getsource(utils.DelayedSubmission._checkpoint_function)


def test_submitit_installs_its_handlers_before_the_call() -> None:
    """`Job` replaces the handlers of SIGTERM and SIGUSR2. It must run after submitit sets them."""
    from submitit.core import submission

    source = inspect.getsource(submission.process_job)
    assert source.index("_handle_signals") < source.index("delayed.result()")
    assert submitit.JobEnvironment._usr_sig() == signal.SIGUSR2
