"""Submit jobs: `mofore submit ...`, or `python launch/submit.py ...` in a checkout.

arguments -> cluster overrides and the rest -> JobRequest or Sweep, checked -> executors
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mofore.config_help import describe_keys
from mofore.errors import UserError
from mofore.launch import sweep
from mofore.launch.arguments import (
    KEY_VALUE,
    SUBMISSION,
    SUBMISSION_DETAILS,
    TASKS,
    CommandParser,
    add_submission,
    run,
)
from mofore.launch.cluster import SubmitConfig, cluster_overrides_of, compose_cluster
from mofore.launch.executors import JobRequest, dry_run_script, run_here, submit_slurm
from mofore.launch.overrides import split_overrides
from mofore.launch.plan import warn_if_too_large
from mofore.launch.tasks import parse_task


def submit(
    argv: list[str],
    *,
    dry_run: bool = False,
    multirun: bool = False,
    config_dir: Path | None = None,
) -> int:
    """Check, then submit or run.

    argv: [TASK] [its arguments] and overrides, `cluster.*` among them.
    Returns 0: submitted or done; 1: a job failed; 75: stopped, rerun to resume. UserError for a
    mistake, and then nothing was submitted.
    """
    cluster_overrides, rest = split_overrides(argv)
    cluster = compose_cluster(cluster_overrides, config_dir)
    if config_dir:  # so that `mofore resume` does not need the folder
        cluster_overrides = cluster_overrides_of(cluster)
    name, arguments = split_task(rest)
    if multirun or any(word.startswith("sweep=") for word in arguments):
        if name != "pretrain":
            raise UserError(f"A sweep pretrains and evaluates its runs: leave out {name}.")
        planned = sweep.plan(cluster, cluster_overrides, arguments, config_dir)
        warn_if_too_large(cluster, [point.pretrain for point in planned.points])
        return _submit_sweep(planned, dry_run)
    task = parse_task(name, arguments, cluster.world_sizes, config_dir)
    warn_if_too_large(cluster, [task])
    cluster = cluster if task.ranks else cluster.single_task()
    return _submit_one(JobRequest(cluster, cluster_overrides, [task]), dry_run)


def split_task(argv: list[str]) -> tuple[str, list[str]]:
    """(task, its arguments): ["evaluate", "runs/a"] -> ("evaluate", ["runs/a"])."""
    if argv and argv[0] in TASKS:
        return argv[0], argv[1:]
    for word in argv:
        if word.startswith("task="):
            raise UserError(
                f"{word} is not a key: write the task first, one of {', '.join(TASKS)}."
            )
    if argv and not KEY_VALUE.match(argv[0]):
        raise UserError(f"{argv[0]} is neither a task ({', '.join(TASKS)}) nor a KEY=VALUE pair.")
    return "pretrain", argv


def _submit_one(request: JobRequest, dry_run: bool) -> int:
    (task,) = request.tasks
    folder = task.run / "jobs"
    if dry_run:
        print_plan(request)
        return 0
    if request.cluster.executor != "slurm":
        return run_here(request, folder)
    (job,) = submit_slurm(request, folder)
    print(f"job {job}: {task.name} {task.run}")
    print(f"log: {folder / f'{job}_0_log.out'}")
    print(f"follow: mofore logs {task.run} -f")
    print(f"state:  mofore jobs {task.run}")
    print(f"cancel: mofore cancel {task.run}")
    return 0


def _submit_sweep(planned: sweep.Sweep, dry_run: bool) -> int:
    if dry_run:
        tasks = [point.pretrain for point in planned.points]
        print_plan(JobRequest(planned.cluster, planned.cluster_overrides, tasks))
        return 0
    if planned.cluster.executor != "slurm":
        return sweep.run_sweep_here(planned)
    lines = sweep.submit_sweep(planned)
    print("\n".join(lines) or f"nothing is missing: {planned.root / 'compare.txt'}")
    print(f"state:  mofore jobs {planned.root}")
    print(f"cancel: mofore cancel {planned.root}")
    return 0


def print_plan(request: JobRequest) -> None:
    """For --dry-run: the script, and the configuration of each task with every default."""
    if request.cluster.executor == "slurm":
        print(dry_run_script(request, request.tasks[0].run / "jobs"))
    for task in request.tasks:
        print(f"# mofore {shlex.join(task.argv)}")
        print(yaml.safe_dump(task.config, sort_keys=False))


def describe() -> str:
    return describe_keys(SubmitConfig)


def run_submit(arguments: argparse.Namespace) -> int:
    return submit(
        arguments.keys,
        dry_run=arguments.dry_run,
        multirun=arguments.multirun,
        config_dir=arguments.config_dir,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`python launch/submit.py ...`; returns the exit code."""
    parser = CommandParser(
        "python launch/submit.py",
        description=f"Submit a job, or run it here.\n{SUBMISSION_DETAILS}",
        describe=describe,
        **SUBMISSION,
    )
    add_submission(parser)
    parser.set_defaults(run=run_submit, parser=parser)
    return run(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
