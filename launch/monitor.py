"""Watch and stop runs from a shell, on a cluster or a laptop: `mofore jobs`, `logs`, `cancel`."""

import logging
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mofore.errors import UserError
from mofore.launch.runs import (
    RunStatus,
    active_jobs,
    find_runs,
    lock_owner,
    read_submissions,
    run_statuses,
)

logger = logging.getLogger(__name__)

COLOURS = {"RUNNING": "green", "COMPLETED": "bold", "PENDING": "yellow", "STOPPED": "yellow"}
TEXT_COLUMNS = ("run", "job", "state")
NUMBER_COLUMNS = ("step", "samples/s", "time left", "loss", "restarts", "checkpoint")
MIN_WIDTH = 120  # a line that the terminal wraps can be read, a cut one cannot


def jobs(roots: list[Path]) -> int:
    """Print a table of the runs at and below these folders."""
    runs = [run for root in roots for run in find_runs(root)]
    if not runs:
        raise UserError(f"There are no runs below {', '.join(map(str, roots))}.")
    common = Path(os.path.commonpath([run.absolute().parent for run in runs]))
    title = f"runs in {os.path.relpath(common)}"
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for name in TEXT_COLUMNS:
        table.add_column(name, overflow="fold", no_wrap=name != "run")
    for name in NUMBER_COLUMNS:
        table.add_column(name, justify="right", overflow="fold", no_wrap=True)
    for status in run_statuses(runs):
        table.add_row(*table_row(status, common))
    Console(width=max(Console().width, MIN_WIDTH)).print(table)
    return 0


def table_row(status: RunStatus, common: Path) -> list[str]:
    """Cells in the order of the columns; "" for unknown."""
    colour = COLOURS.get(status.state, "red")
    left, age, step = status.seconds_left, status.checkpoint_age, status.checkpoint_step
    return [
        escape(os.path.relpath(status.run, common)),
        status.job,
        f"[{colour}]{status.state}[/]",
        f"{status.step}/{status.steps}",
        _number(status.samples_per_second, ".3g"),
        "" if left is None else format_duration(left),
        _number(status.loss, ".3f"),
        str(status.restarts),
        "" if step is None else f"{step}, {format_duration(age or 0)} ago",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def format_duration(seconds: float) -> str:
    """In the one or two largest units: 3 d 2 h, 1 h 5 min, 12 s."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def find_log(run: Path, rank: int) -> Path:
    """A rank's log of the newest submission that has started, else of the run itself.

    A run that was started without `submit` has no jobs, but its ranks log in RUN/logs.
    """
    submissions = read_submissions(run)
    for submission in reversed(submissions):
        log = Path(submission.log.replace("%t", str(rank)))
        if log.exists():
            return log
    own = run / "logs" / f"rank-{rank:05d}.log"
    if own.exists():
        return own
    if submissions:
        raise UserError(
            f"Job {submissions[-1].id} of {run} has no log of rank {rank} yet: see "
            f"`mofore jobs {run}`."
        )
    raise UserError(f"{run} has neither jobs nor a log of rank {rank} in {own.parent}.")


def logs(run: Path, follow: bool, rank: int) -> int:
    """Print a rank's log; with `follow` also what is appended, until Ctrl-C or the run's end."""
    log = find_log(run, rank)
    logger.info("%s", log)
    with log.open(errors="replace") as file:
        while True:
            for line in file:
                sys.stdout.write(line)
            sys.stdout.flush()
            if not follow or (not active_jobs([run]) and lock_owner(run) is None):
                return 0
            time.sleep(2)  # each round queries the queue


def cancel(root: Path) -> int:
    """Cancel jobs and processes of the runs at and below a folder; pretraining saves first."""
    runs = find_runs(root)
    active = {job.id: job for job in active_jobs({root, *runs}).values()}
    if active:
        subprocess.run(["scancel", *active], check=True)
        for job in active.values():
            print(f"cancelled job {job.id}: {job.task}")
    signalled = [run for run in runs if _stop_process(run)]
    if not active and not signalled:
        print(f"nothing to cancel: no pending or running jobs below {root}")
    return 0


def _stop_process(run: Path) -> bool:
    """Send SIGTERM to the process that trains this run outside SLURM, if there is one."""
    owner = lock_owner(run)
    if not owner or owner.get("job") is not None:
        return False
    if owner["host"] != platform.node():
        raise UserError(
            f"{run} is trained by process {owner['pid']} on {owner['host']}: cancel it there."
        )
    os.kill(owner["pid"], signal.SIGTERM)
    print(f"sent SIGTERM to process {owner['pid']}: it finishes its step, saves and exits: {run}")
    return True
