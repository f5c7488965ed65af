"""Seeing and steering runs from a shell: `mofore jobs`, `logs`, `cancel`, `resume`, on a cluster and on a laptop."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mofore.errors import UserError
from mofore.launch.runs import (
    Progress,
    Submission,
    active_jobs,
    find_runs,
    holder,
    progress,
    submissions,
)

if TYPE_CHECKING:  # torch comes with it, and to look at runs must be quick
    from mofore.config import PretrainConfig

COLOURS = {"RUNNING": "green", "COMPLETED": "bold", "PENDING": "yellow", "STOPPED": "yellow"}


def jobs(roots: list[Path]) -> int:
    """A table of the runs below these folders."""
    runs = [run for root in roots for run in find_runs(root)]
    if not runs:
        raise UserError(f"no runs below {', '.join(map(str, roots))}.")
    common = Path(os.path.commonpath([run.absolute().parent for run in runs]))
    table = Table(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        title=f"runs in {os.path.relpath(common)}",
        title_justify="left",
    )
    for name in (
        "run",
        "job",
        "state",
        "step",
        "samples/s",
        "ends in",
        "loss",
        "restarts",
        "checkpoint",
    ):
        left = name in ("run", "job", "state")
        table.add_column(
            name, justify="left" if left else "right", overflow="fold", no_wrap=name != "run"
        )
    for each in progress(runs):
        table.add_row(*row(each, common))
    Console(width=max(Console().width, 120)).print(
        table
    )  # a line that wraps can be read, a cut one cannot
    return 0


def row(each: Progress, common: Path) -> list[str]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    colour = COLOURS.get(each.state, "red")
    saved = "" if each.committed is None else f"{each.committed}, {ago(each.age or 0)} ago"
    return [
        escape(os.path.relpath(each.run, common)),
        each.job,
        f"[{colour}]{each.state}[/]",
        f"{each.step}/{each.steps}",
        number(each.speed, ".3g"),
        "" if each.left is None else ago(each.left),
        number(each.loss, ".3f"),
        str(each.restarts),
        saved,
    ]


def ago(seconds: float) -> str:
    """In the largest two units: 3 d 2 h, 1 h 5 min, 12 s."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def newest_log(run: Path, rank: int) -> Path:
    """The log of the newest submission that has begun. UserError where there is none."""
    known = submissions(run)
    if not known:
        raise UserError(f"{run} has no jobs: its output went to the terminal that started it.")
    for each in reversed(known):
        log = Path(each.log.replace("%t", str(rank)))
        if log.exists():
            return log
    raise UserError(
        f"job {known[-1].id} of {run} has no log of rank {rank} yet: see `mofore jobs {run}`."
    )


def logs(run: Path, follow: bool, rank: int) -> int:
    """Print a rank's log; with `follow` what is added to it too, until Ctrl-C or the run's end."""
    log = newest_log(run, rank)
    print(f"# {log}", file=sys.stderr)
    with log.open(errors="replace") as file:
        while True:
            for line in file:
                sys.stdout.write(line)
            sys.stdout.flush()
            if not follow or (not active_jobs([run]) and holder(run) is None):
                return 0
            time.sleep(2)  # the queue is asked each time


def cancel(root: Path) -> int:
    """End the jobs and local processes of the runs below a folder; a run that trains saves first."""
    runs, told = find_runs(root), 0
    sweep = {each.id: each for each in active_jobs({root, *runs}).values()}
    if sweep:
        subprocess.run(["scancel", *sweep], check=True)
        for each in sweep.values():
            print(f"job {each.id} cancelled: {each.task}")
    for run in runs:
        owner = holder(run)
        if owner and owner.get("job") is None:
            if owner["host"] != platform.node():
                raise UserError(
                    f"{run} is trained by process {owner['pid']} on {owner['host']}: cancel it there."
                )
            os.kill(owner["pid"], signal.SIGTERM)
            print(f"process {owner['pid']} was told to finish its step, save and end: {run}")
            told += 1
    if not sweep and not told:
        print(f"nothing waits or runs below {root}.")
    return 0


def resume(run: Path, changes: list[str]) -> int:
    """Go on with a run as it was submitted last, or started; `changes` may be what does not change what is computed."""
    from mofore.config import read_config
    from mofore.launch.submit import main as submit
    from mofore.launch.submit import split_overrides
    from mofore.launch.tasks import overrides_of
    from mofore.train import main as pretrain

    cluster_changes, changes = split_overrides(changes)
    known = [each for each in submissions(run) if each.task == "pretrain"]
    config = read_config(run / "config.yaml") if (run / "config.yaml").exists() else None
    if config is None and not known:
        raise UserError(f"{run} is no run folder: it has neither config.yaml nor jobs.")
    if config:
        check_safe(run, config, changes)
    if not known:
        assert config is not None
        return pretrain([*overrides_of(config), f"run_dir='{run}'", *changes])
    last: Submission = known[-1]
    if last.executor != "slurm":
        print(f"going on as job {last.id} was submitted", flush=True)
    return submit([*last.cluster, *cluster_changes, *last.words[1:], *changes])


def check_safe(run: Path, config: "PretrainConfig", changes: list[str]) -> None:
    """UserError where a change would make another run of it."""
    from mofore.config import PretrainConfig, compose
    from mofore.launch.tasks import overrides_of
    from mofore.run_folder import RESUMABLE_KEYS

    keys = [word.partition("=")[0] for word in changes]
    other = [key for key in keys if not key.startswith(RESUMABLE_KEYS) or key == "run_dir"]
    if other:
        raise UserError(
            f"{other[0]} decides what {run} computes, so it cannot change on the way: start another run. "
            f"These may change: {', '.join(f'{key}*' if key.endswith('.') else key for key in RESUMABLE_KEYS if key != 'run_dir')}."
        )
    compose(PretrainConfig, [*overrides_of(config), *changes])
