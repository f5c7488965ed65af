"""What the run folder and the queue know about a run: its jobs, their states, its progress.

    RUN/jobs/jobs.jsonl    one line per submission
    RUN/jobs/starts.jsonl  one line per start of a job
    + metrics.jsonl, checkpoints/, squeue, sacct -> RunStatus

Without torch, so that looking at many runs is fast.
"""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from filelock import FileLock, Timeout

from mofore.checkpoint.format import list_checkpoints
from mofore.errors import UserError
from mofore.files import append_jsonl, read_jsonl, write_jsonl

JOBS = "jobs.jsonl"
STARTS = "starts.jsonl"
ACTIVE_STATES = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SUSPENDED",
    "RESIZING",
)
RECENT_STEPS = 20  # the speed is their mean


class Submission(NamedTuple):
    """One line of RUN/jobs/jobs.jsonl."""

    id: str  # job id; ARRAY_INDEX for an element of an array
    executor: str
    task: str  # pretrain, evaluate, ...
    argv: list[str]  # of the mofore command
    cluster_overrides: list[str]
    log: str  # path, with %t in place of the rank
    time: str


class RunStatus(NamedTuple):
    run: Path
    job: str  # id of the newest pretraining job, or ""
    state: str
    step: int
    steps: int
    samples_per_second: float | None  # None unless running
    seconds_left: float | None  # None unless running
    loss: float | None
    restarts: int
    checkpoint_step: int | None  # of the newest checkpoint
    checkpoint_age: float | None  # in seconds


def read_submissions(run: Path) -> list[Submission]:
    """All submissions for this run folder, oldest first."""
    return [Submission(**line) for line in read_jsonl(run / "jobs" / JOBS)]


def record_submission(run: Path, submission: Submission) -> None:
    (run / "jobs").mkdir(parents=True, exist_ok=True)
    append_jsonl(run / "jobs" / JOBS, submission._asdict())


def remove_submission(run: Path, job: str) -> None:
    """Remove the record of a job that was cancelled before it could start."""
    path = run / "jobs" / JOBS
    write_jsonl(path, [line for line in read_jsonl(path) if line["id"] != job])


def find_runs(root: Path) -> list[Path]:
    """Run folders at and below `root`, sorted by path. UserError if there is no such folder."""
    if not root.is_dir():
        raise UserError(f"There is no folder {root}: give the folder of your runs.")
    patterns = ("", "*/", "*/*/", "*/*/*/")
    found = set()
    for pattern in patterns:
        found |= {path.parent for path in root.glob(f"{pattern}config.yaml")}
        found |= {path.parents[1] for path in root.glob(f"{pattern}jobs/{JOBS}")}
    return sorted(found)


def job_states(ids: list[str]) -> dict[str, str]:
    """SLURM's state of each job, from the queue, else from accounting.

    ENDED if neither has the job any more, UNKNOWN where there is no SLURM or it does not answer.
    """
    unknown = dict.fromkeys(ids, "UNKNOWN")
    if not ids or shutil.which("squeue") is None:
        return unknown
    queue = _query(["squeue", "--me", "--noheader", "--array", "--format=%i|%T"])
    if queue is None:
        return unknown
    states = dict(line.split("|") for line in queue.splitlines())
    others = [each for each in ids if each not in states]
    if others:
        command = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
        accounting = _query([*command, f"--jobs={','.join(others)}"]) or ""
        for line in accounting.splitlines():
            job, state = line.split("|")
            states.setdefault(job, state.split()[0])  # "CANCELLED by 1000"
    return {each: states.get(each, "ENDED") for each in ids}


def _query(command: list[str]) -> str | None:
    """The command's stdout; None if it failed, as sacct does without accounting."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def active_jobs(runs: Iterable[Path]) -> dict[tuple[Path, str], Submission]:
    """The pending or running job of each (run, task) that has one; queries the queue once."""
    known = [
        (run, each) for run in runs for each in read_submissions(run) if each.executor == "slurm"
    ]
    states = job_states([each.id for _, each in known])
    return {(run, each.task): each for run, each in known if states[each.id] in ACTIVE_STATES}


def lock_owner(run: Path) -> dict[str, Any] | None:
    """owner.json of the process that trains in this folder now; None if there is none."""
    if not (run / "lock").exists():
        return None
    lock = FileLock(run / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((run / "owner.json").read_text())
        return {}
    except (OSError, NotImplementedError):  # this file system has no locks
        return None
    lock.release()
    return None


def run_statuses(runs: list[Path]) -> list[RunStatus]:
    """The status of each run; queries the queue once."""
    newest: dict[Path, Submission | None] = {}
    for run in runs:
        pretrainings = [each for each in read_submissions(run) if each.task == "pretrain"]
        newest[run] = pretrainings[-1] if pretrainings else None
    on_slurm = [each.id for each in newest.values() if each and each.executor == "slurm"]
    states = job_states(on_slurm)
    return [_status(run, job, states.get(job.id) if job else None) for run, job in newest.items()]


def _status(run: Path, job: Submission | None, state: str | None) -> RunStatus:
    config = _read_config(run)
    steps, batch = config.get("steps", 0), config.get("global_batch", 0)
    lines = read_jsonl(run / "metrics.jsonl", last=RECENT_STEPS)
    step = lines[-1]["step"] if lines else 0
    checkpoints = list_checkpoints(run)
    saved, folder = checkpoints[-1] if checkpoints else (None, None)
    if state is None or state in ("UNKNOWN", "ENDED"):
        finished = saved is not None and saved == steps
        ended = "COMPLETED" if finished else "STOPPED"
        state = "RUNNING" if lock_owner(run) is not None else ended
    speed = _speed(lines, batch) if state == "RUNNING" else None
    starts = [line for line in read_jsonl(run / "jobs" / STARTS) if job and line["id"] == job.id]
    return RunStatus(
        run,
        job.id if job else "",
        state,
        step,
        steps,
        samples_per_second=speed,
        seconds_left=(steps - step) * batch / speed if speed else None,
        loss=lines[-1]["loss"] if lines else None,
        restarts=max((line["restart"] for line in starts), default=0),
        checkpoint_step=saved,
        checkpoint_age=time.time() - folder.stat().st_mtime if folder else None,
    )


def _speed(lines: list[dict[str, Any]], batch: int) -> float | None:
    """Samples per second, over the time of all these steps."""
    times = [batch / line["samples_per_second"] for line in lines if line.get("samples_per_second")]
    return batch * len(times) / sum(times) if times else None


def _read_config(run: Path) -> dict[str, Any]:
    """Plain YAML: fast, and the keys of an older run need not match."""
    try:
        return yaml.safe_load((run / "config.yaml").read_text())
    except FileNotFoundError:
        return {}
