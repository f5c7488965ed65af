"""What is known of a run from its folder and from the queue: its jobs, their states, how far it is.

RUN/jobs/jobs.jsonl (a line a submission), starts.jsonl (a line a start), metrics.jsonl, checkpoints/ -> Progress
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

JOBS = "jobs.jsonl"
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
RECENT = 20  # steps over which the speed is told


class Submission(NamedTuple):
    """One line of RUN/jobs/jobs.jsonl."""

    id: str  # of the job; an element of an array has ARRAY_INDEX
    executor: str
    task: str  # pretrain, evaluate, ...
    words: list[str]  # of the mofore command
    cluster: list[str]  # the words that decided the cluster's part
    log: str  # path, with %t for the rank
    time: str


class Progress(NamedTuple):
    run: Path
    job: str  # the newest submission of a pretraining, or ""
    state: str
    step: int
    steps: int
    speed: float | None  # samples a second
    left: float | None  # seconds
    loss: float | None
    restarts: int
    committed: int | None  # newest checkpoint's step
    age: float | None  # seconds since it was committed


def submissions(run: Path) -> list[Submission]:
    return [Submission(**line) for line in _lines(run / "jobs" / JOBS)]


def record_submission(run: Path, submission: Submission) -> None:
    (run / "jobs").mkdir(parents=True, exist_ok=True)
    with (run / "jobs" / JOBS).open("a") as file:
        file.write(json.dumps(submission._asdict()) + "\n")


def remove_submission(run: Path, job: str) -> None:
    """A submission that was taken back leaves no trace."""
    kept = [line for line in _lines(run / "jobs" / JOBS) if line["id"] != job]
    (run / "jobs" / JOBS).write_text("".join(json.dumps(line) + "\n" for line in kept))


def find_runs(root: Path) -> list[Path]:
    """Run folders at and below `root`, by path."""
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: name the folder that your runs lie in.")
    marks = ("config.yaml", f"jobs/{JOBS}")
    depths = ("", "*/", "*/*/", "*/*/*/")
    found = {
        path.parents[mark.count("/")]
        for mark in marks
        for deep in depths
        for path in root.glob(deep + mark)
    }
    return sorted(found)


def job_states(ids: list[str]) -> dict[str, str]:
    """SLURM's word for each job: from the queue, else from accounting; ENDED where neither knows it any more."""
    if not ids or shutil.which("squeue") is None:
        return dict.fromkeys(ids, "UNKNOWN")
    queue = _ask(["squeue", "--me", "--noheader", "--array", "--format=%i|%T"])
    if queue is None:
        return dict.fromkeys(ids, "UNKNOWN")
    states = dict(line.split("|") for line in queue.splitlines())
    others = [each for each in ids if each not in states]
    if others:
        ask = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State"]
        told = _ask([*ask, "--jobs=" + ",".join(others)]) or ""
        for line in told.splitlines():
            job, state = line.split("|")
            states.setdefault(job, state.split()[0])  # "CANCELLED by 1000"
    return {each: states.get(each, "ENDED") for each in ids}


def _ask(command: list[str]) -> str | None:
    """What it printed; None where it failed, as sacct does where accounting is off."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def active_jobs(runs: Iterable[Path]) -> dict[tuple[Path, str], Submission]:
    """The job that waits or runs for each run and task, of those that have one; one question to the queue."""
    known = [(run, each) for run in runs for each in submissions(run) if each.executor == "slurm"]
    states = job_states([each.id for _, each in known])
    return {(run, each.task): each for run, each in known if states[each.id] in ACTIVE_STATES}


def holder(run: Path) -> dict[str, Any] | None:
    """owner.json of the process that trains in this folder now; None where none does."""
    if not (run / "lock").exists():
        return None
    lock = FileLock(run / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((run / "owner.json").read_text())
        return {}
    except (OSError, NotImplementedError):  # no locks on this file system
        return None
    lock.release()
    return None


def progress(runs: list[Path]) -> list[Progress]:
    """How far each run is; one question to the queue for all of them."""
    newest = {
        run: next((s for s in reversed(submissions(run)) if s.task == "pretrain"), None)
        for run in runs
    }
    states = job_states([s.id for s in newest.values() if s and s.executor == "slurm"])
    return [_progress(run, s, states.get(s.id) if s else None) for run, s in newest.items()]


def _progress(run: Path, submission: Submission | None, state: str | None) -> Progress:
    config, lines = _config(run), _tail(run / "metrics.jsonl")
    steps, batch = config.get("steps", 0), config.get("global_batch", 0)
    step = lines[-1]["step"] if lines else 0
    times = [batch / line["samples_per_second"] for line in lines if line.get("samples_per_second")]
    speed = batch * len(times) / sum(times) if times else None
    folders = list_checkpoints(run)
    saved, folder = folders[-1] if folders else (None, None)
    age = time.time() - folder.stat().st_mtime if folder else None
    starts = [
        line
        for line in _lines(run / "jobs/starts.jsonl")
        if submission and line["id"] == submission.id
    ]
    if state is None or state in ("UNKNOWN", "ENDED"):
        state = (
            "RUNNING"
            if holder(run) is not None
            else "COMPLETED"
            if saved and saved == steps
            else "STOPPED"
        )
    running = state == "RUNNING"
    return Progress(
        run,
        submission.id if submission else "",
        state,
        step,
        steps,
        speed if running else None,
        (steps - step) * batch / speed if speed and running else None,
        lines[-1]["loss"] if lines else None,
        max((line["restart"] for line in starts), default=0),
        saved,
        age,
    )


def _config(run: Path) -> dict[str, Any]:
    """As YAML, and not as a configuration: this is quick, and an older run's keys do not matter here."""
    try:
        return yaml.safe_load((run / "config.yaml").read_text())
    except FileNotFoundError:
        return {}


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl; of a line that is being written, nothing."""
    if not path.exists():
        return []
    begin = max(0, path.stat().st_size - 1000 * RECENT)  # a line has some 500 bytes
    with path.open("rb") as file:
        file.seek(begin)
        lines = file.read().split(b"\n")[1 if begin else 0 : -1]
    return [json.loads(line) for line in lines[-RECENT:]]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
