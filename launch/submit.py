"""Submit a job: python launch/submit.py cluster=slurm cluster.nodes=2 cluster.gpus_per_node=8 experiment=... data.manifest=FILE

    task=pretrain   (the default) and the words of `mofore pretrain`
    task=evaluate   and the words of `mofore evaluate`: run=RUN ...
    task=prepare    and the words of `mofore prepare`: VIDEOS --out DIR ...
    --multirun      backbone=vit_tiny,vit_small: pretrain each, evaluate each, compare them all
    sweep=NAME      the same, of configs/sweep/NAME.yaml
    --dry-run       print the script and the whole configuration; submit nothing
    --help cluster  every cluster.KEY with its default

cluster=slurm submits and returns; cluster=local runs the ranks as processes of this machine, cluster=debug in this
process. All of the configuration is checked before anything is submitted. A SLURM job runs a copy of the code, so that
nothing edited afterwards changes it.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import submitit
import yaml
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from mofore.config import compose, describe_keys
from mofore.errors import UserError
from mofore.launch.cluster import (
    ClusterConfig,
    check_slurm,
    explain,
    sbatch_parameters,
    sbatch_script,
)
from mofore.launch.job import Job, setup, teardown
from mofore.launch.runs import Submission, active_jobs, holder, record_submission
from mofore.launch.snapshot import take_snapshot
from mofore.launch.tasks import Task, parse_task, to_override


@dataclass
class SubmitConfig:
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


class JobRequest(NamedTuple):
    """What the user asked for, checked."""

    cluster: ClusterConfig
    cluster_words: list[str]
    tasks: list[Task]  # one, or one an element of an array


def cluster_of(words: list[str]) -> ClusterConfig:
    """Options and shell lines are taken as they stand, without quotes for hydra."""
    plain = ("cluster.sbatch_args", "cluster.srun_args", "cluster.prologue")
    pairs = [(word, *word.partition("=")[::2]) for word in words]
    return compose(
        SubmitConfig,
        [to_override(key, value) if key in plain else word for word, key, value in pairs],
    ).cluster


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """(those of the cluster, the others)."""
    ours = [word for word in words if word.startswith(("cluster=", "cluster."))]
    return ours, [word for word in words if word not in ours]


def order(words: list[str]) -> JobRequest:
    """Everything that can be known to be wrong before a submission raises UserError here."""
    cluster_words, rest = split_overrides(words)
    cluster = cluster_of(cluster_words)
    task = parse_task(rest, cluster.worlds)
    return JobRequest(cluster if task.ranks else cluster.alone(), cluster_words, [task])


def check_free(tasks: list[Task]) -> None:
    """UserError where a job or a process does this in a task's run folder already, or nothing can be written to it."""
    for (run, name), job in active_jobs([task.run for task in tasks]).items():
        if name == tasks[0].name:
            raise UserError(
                f"{run} has a job already: {name}, job {job.id}. See `mofore jobs {run}`; to end it: "
                f"`mofore cancel {run}`; or give another run_dir."
            )
    for task in tasks:
        _check_folder(task)


def _check_folder(task: Task) -> None:
    run = task.run
    owner = holder(run) if task.ranks else None
    if owner is not None:
        raise UserError(
            f"{run} is in use by process {owner.get('pid')} on {owner.get('host')}: wait for it, end it "
            f"(`mofore cancel {run}`), or give another run_dir."
        )
    there = next(folder for folder in (run / "jobs", *(run / "jobs").parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as reason:
        raise UserError(
            f"{run} cannot be written to ({reason.strerror}): choose a folder on a disk that the nodes share."
        ) from reason


def parameters_of(asked: JobRequest, code: Path, dependency: str | None = None) -> dict[str, Any]:
    runs = [task.run for task in asked.tasks]
    return sbatch_parameters(
        asked.cluster, setup(asked.cluster, code, runs), teardown(asked.cluster), dependency
    )


def submit_slurm(asked: JobRequest, folder: Path, dependency: str | None = None) -> list[str]:
    """One job, or an array with an element a task; returns their ids. Nothing stays behind where SLURM refuses."""
    check_free(asked.tasks)
    plan = parameters_of(asked, folder / "code" / "DIGEST", dependency)
    check_slurm(asked.cluster, sbatch_script(asked.cluster, plan, folder))
    parameters = parameters_of(asked, take_snapshot(folder), dependency)
    executor = submitit.SlurmExecutor(folder, python=asked.cluster.python)
    executor.update_parameters(**parameters)
    try:
        with executor.batch():
            jobs = [executor.submit(Job(task.words)) for task in asked.tasks]
    except (FailedJobError, FailedSubmissionError) as reason:
        raise UserError(explain(str(reason))) from reason
    for task, job in zip(asked.tasks, jobs, strict=True):
        _note(asked, task, job)
    return [job.job_id for job in jobs]


def run_here(asked: JobRequest, folder: Path) -> int:
    """cluster=local or debug: start one task's ranks, wait for their end, return the exit code. Ctrl-C ends the job,
    which saves first.
    """
    (task,) = asked.tasks
    check_free([task])
    executor = submitit.AutoExecutor(folder, cluster=asked.cluster.executor)
    executor.update_parameters(
        name=asked.cluster.name,
        nodes=1,
        tasks_per_node=asked.cluster.tasks,
        timeout_min=-(-asked.cluster.seconds // 60),
        stderr_to_stdout=True,
    )
    job = executor.submit(Job(task.words))
    log = job.paths.stdout
    _note(asked, task, job)
    print(f"job {job.job_id}: {log}", flush=True)
    try:
        codes = job.results()
    except KeyboardInterrupt:
        job.cancel(check=False)
        print(f"job {job.job_id} was told to stop; the same command goes on.", file=sys.stderr)
        return 130
    except (FailedJobError, UncompletedJobError) as failure:
        print(f"mofore: job {job.job_id} failed, its log: {log}\n{failure}", file=sys.stderr)
        return 1
    if any(codes):
        print(f"mofore: job {job.job_id} ended with {max(codes)}, its log: {log}", file=sys.stderr)
    return max(codes)


def _note(asked: JobRequest, task: Task, job: submitit.Job) -> None:
    log = re.sub(r"_\d+_log\.out$", "_%t_log.out", str(job.paths.stdout))  # a file a rank
    told = time.strftime("%Y-%m-%d %H:%M:%S")
    record_submission(
        task.run,
        Submission(
            str(job.job_id),
            asked.cluster.executor,
            task.name,
            task.words,
            asked.cluster_words,
            log,
            told,
        ),
    )


def cancel_jobs(jobs: list[str]) -> None:
    """Cancel what was submitted for something that turned out not to be whole."""
    if jobs:
        subprocess.run(["scancel", *jobs], check=False)


def show_plan(asked: JobRequest) -> None:
    """What --dry-run prints: the script, and the configuration of each task with every default."""
    folder = asked.tasks[0].run / "jobs"
    if asked.cluster.executor == "slurm":
        print(
            sbatch_script(asked.cluster, parameters_of(asked, folder / "code" / "DIGEST"), folder)
        )
    for task in asked.tasks:
        print(f"# mofore {shlex.join(task.words)}")
        print(yaml.safe_dump(task.config, sort_keys=False))


def main(words: list[str]) -> int:
    """0 submitted (slurm) or done (local, debug); 1 a job failed; 2 a mistake, and nothing was submitted."""
    if not words or words[0] in ("-h", "--help"):
        print(describe_keys(SubmitConfig) if words[1:] == ["cluster"] else __doc__)
        return 0
    dry, several = "--dry-run" in words, {"--multirun", "-m"} & {*words}
    words = [word for word in words if word not in ("--dry-run", "--multirun", "-m")]
    try:
        if several or any(word.startswith("sweep=") for word in words):
            return _sweep(words, dry)
        return submit(words, dry)
    except UserError as mistake:
        print(f"mofore: {mistake}", file=sys.stderr)
        return 2


def submit(words: list[str], dry: bool = False) -> int:
    """One task: to SLURM, or here. Returns the exit code."""
    asked = order(words)
    run = asked.tasks[0].run
    if dry:
        show_plan(asked)
        return 0
    if asked.cluster.executor != "slurm":
        return run_here(asked, run / "jobs")
    (job,) = submit_slurm(asked, run / "jobs")
    print(f"job {job}: {asked.tasks[0].name} {run}\nlog: {run / 'jobs' / f'{job}_0_log.out'}")
    print(f"follow: mofore logs {run} -f    state: mofore jobs {run}    end: mofore cancel {run}")
    return 0


def _sweep(words: list[str], dry: bool) -> int:
    from mofore.launch.sweep import plan, run_sweep_here, submit_sweep

    sweep = plan(words)
    if dry:
        show_plan(
            JobRequest(
                sweep.cluster, sweep.cluster_words, [point.pretrain for point in sweep.points]
            )
        )
        return 0
    if sweep.cluster.executor != "slurm":
        return run_sweep_here(sweep)
    lines = submit_sweep(sweep)
    print("\n".join(lines) or f"nothing is missing: {sweep.root / 'compare.txt'}")
    print(f"state: mofore jobs {sweep.root}    end: mofore cancel {sweep.root}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
