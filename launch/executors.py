"""Start a request's jobs: on SLURM, or as processes of this machine; and record them in the run."""

import logging
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from mofore.errors import EXIT_INTERRUPTED, UserError
from mofore.launch.cluster import ClusterConfig
from mofore.launch.job import Job, setup, teardown
from mofore.launch.runs import Submission, active_jobs, lock_owner, record_submission
from mofore.launch.slurm import check_slurm, explain, sbatch_parameters, sbatch_script
from mofore.launch.snapshot import take_snapshot
from mofore.launch.tasks import Task

logger = logging.getLogger(__name__)


class JobRequest(NamedTuple):
    """One job, or an array with one element per task; checked."""

    cluster: ClusterConfig
    cluster_overrides: list[str]
    tasks: list[Task]


def dry_run_script(request: JobRequest, folder: Path) -> str:
    """The sbatch script of a request; DIGEST stands for the snapshot that a submission takes."""
    return sbatch_script(request.cluster, _parameters(request, folder / "code/DIGEST"), folder)


def submit_slurm(request: JobRequest, folder: Path, dependency: str | None = None) -> list[str]:
    """Submit the request and return the ids of its jobs. Nothing is left if SLURM refuses."""
    check_free(request.tasks)
    planned = _parameters(request, folder / "code/DIGEST", dependency)
    check_slurm(request.cluster, sbatch_script(request.cluster, planned, folder))
    parameters = _parameters(request, take_snapshot(folder), dependency)
    executor = submitit.SlurmExecutor(folder, python=request.cluster.python)
    executor.update_parameters(**parameters)
    try:
        with executor.batch():
            jobs = [executor.submit(Job(task.argv)) for task in request.tasks]
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(explain(str(error))) from error
    for task, job in zip(request.tasks, jobs, strict=True):
        _record(request, task, job)
    return [job.job_id for job in jobs]


def run_here(request: JobRequest, folder: Path) -> int:
    """cluster=local or debug: run one task, wait for its end and return its exit code.

    Ctrl-C cancels the job, which saves first.
    """
    (task,) = request.tasks
    check_free([task])
    executor = submitit.AutoExecutor(folder, cluster=request.cluster.executor)
    executor.update_parameters(
        name=request.cluster.name,
        nodes=1,
        tasks_per_node=request.cluster.tasks,
        timeout_min=-(-request.cluster.seconds // 60),
        stderr_to_stdout=True,
    )
    job = executor.submit(Job(task.argv))
    log = job.paths.stdout
    _record(request, task, job)
    print(f"job {job.job_id}: {log}", flush=True)
    try:
        codes = job.results()
    except KeyboardInterrupt:
        job.cancel(check=False)
        logger.warning("Job %s is cancelled. Rerun the same command to resume.", job.job_id)
        return EXIT_INTERRUPTED
    except (FailedJobError, UncompletedJobError) as error:
        logger.error("Job %s failed, its log: %s\n%s", job.job_id, log, error)
        return 1
    if any(codes):
        logger.error("Job %s ended with exit code %d, its log: %s", job.job_id, max(codes), log)
    return max(codes)


def cancel_jobs(ids: list[str]) -> None:
    if ids:
        subprocess.run(["scancel", *ids], check=False)


def check_free(tasks: list[Task]) -> None:
    """UserError if a run folder is in use by this task already, or cannot be written to."""
    for (run, name), job in active_jobs([task.run for task in tasks]).items():
        if name == tasks[0].name:
            raise UserError(
                f"{run} has a job already: {name}, job {job.id}. See `mofore jobs {run}`; cancel "
                f"it with `mofore cancel {run}`; or give another run_dir."
            )
    for task in tasks:
        _check_folder(task)


def _check_folder(task: Task) -> None:
    run = task.run
    owner = lock_owner(run) if task.ranks else None
    if owner is not None:
        raise UserError(
            f"{run} is in use by process {owner.get('pid')} on {owner.get('host')}: wait for it, "
            f"cancel it (`mofore cancel {run}`), or give another run_dir."
        )
    existing = next(each for each in (run / "jobs", *(run / "jobs").parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{run} cannot be written to ({error.strerror}): choose a folder on a disk that the "
            "nodes share."
        ) from error


def _parameters(request: JobRequest, code: Path, dependency: str | None = None) -> dict[str, Any]:
    cluster, runs = request.cluster, [task.run for task in request.tasks]
    return sbatch_parameters(cluster, setup(cluster, code, runs), teardown(cluster), dependency)


def _record(request: JobRequest, task: Task, job: submitit.Job) -> None:
    submission = Submission(
        id=str(job.job_id),
        executor=request.cluster.executor,
        task=task.name,
        argv=task.argv,
        cluster_overrides=request.cluster_overrides,
        log=re.sub(r"_\d+_log\.out$", "_%t_log.out", str(job.paths.stdout)),  # one per rank
        time=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    record_submission(task.run, submission)
