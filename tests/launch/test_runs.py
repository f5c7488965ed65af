"""What is known of runs from their folders; comparisons of runs without results."""

import json
from pathlib import Path

import pytest

from mofore.errors import UserError
from mofore.launch import monitor
from mofore.launch.cli import main
from mofore.launch.compare import last_error
from mofore.launch.runs import (
    Submission,
    find_runs,
    read_submissions,
    record_submission,
    remove_submission,
    run_statuses,
)


def submission(run: Path, job: str, task: str = "pretrain") -> Submission:
    log = str(run / "jobs" / f"{job}_%t_log.out")
    return Submission(job, "local", task, [task], [], log, "2026-11-27 04:44:10")


def test_submissions_are_recorded_and_removed(tmp_path: Path) -> None:
    first, second = (submission(tmp_path, job) for job in "12")
    record_submission(tmp_path, first)
    record_submission(tmp_path, second)
    assert read_submissions(tmp_path) == [first, second]
    remove_submission(tmp_path, "1")
    assert read_submissions(tmp_path) == [second]


def test_a_line_that_is_being_written_is_ignored(tmp_path: Path) -> None:
    line = {"step": 3, "loss": 0.5, "samples_per_second": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + '\n{"step": 4, "lo')
    (tmp_path / "config.yaml").write_text("steps: 10\nglobal_batch: 4\n")
    (status,) = run_statuses([tmp_path])
    assert (status.step, status.steps, status.loss, status.state) == (3, 10, 0.5, "STOPPED")
    assert status.samples_per_second is None  # it does not run


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b/c", "b/d/e/f"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
    record_submission(tmp_path / "queued", submission(tmp_path, "1"))
    assert find_runs(tmp_path) == [tmp_path / "a", tmp_path / "b/c", tmp_path / "queued"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]
    with pytest.raises(UserError, match="no folder"):
        find_runs(tmp_path / "nowhere")


def test_log_of_the_newest_job_that_started(tmp_path: Path) -> None:
    record_submission(tmp_path, submission(tmp_path, "1"))
    record_submission(tmp_path, submission(tmp_path, "2"))
    with pytest.raises(UserError, match="Job 2 of .* has no log of rank 0 yet"):
        monitor.find_log(tmp_path, 0)
    (tmp_path / "jobs/1_0_log.out").touch()
    assert monitor.find_log(tmp_path, 0).name == "1_0_log.out"
    (tmp_path / "jobs/2_0_log.out").touch()
    assert monitor.find_log(tmp_path, 0).name == "2_0_log.out"


def test_log_of_a_run_without_jobs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["logs", str(tmp_path)]) == 2
    assert "neither jobs nor a log of rank 0" in capsys.readouterr().err
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-00003.log").write_text("a line of rank 3\n")
    assert main(["logs", str(tmp_path), "--rank", "3"]) == 0
    assert capsys.readouterr().out == "a line of rank 3\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12, "12 s"), (300, "5 min"), (3900, "1 h 5 min"), (266400, "3 d 2 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert monitor.format_duration(seconds) == text


LOGS = {
    "a rank's error": (
        "2026-11-27 04:44:10,123 INFO    [rank 0] 40 videos\n"
        "step 1/2\r2026-11-27 04:44:11,123 ERROR   [rank 0] the disk is full: free 3 GB\n"
        "2026-11-27 04:44:12,123 WARNING [rank 0] later\nmofore: not requeued: 3 starts\n",
        "the disk is full: free 3 GB",
    ),
    "an error of a command": ("a line\nmofore: error: no such run\n", "no such run"),
    "an error wins over a traceback": (
        "mofore: error: no such run\nTraceback\nValueError: 3\n",
        "no such run",
    ),
    "a traceback": ("Traceback (most recent call last):\nValueError: 3\nlast\n", "ValueError: 3"),
    "no error": ("a line\n", None),
}


@pytest.mark.parametrize("name", LOGS)
def test_last_error(name: str, tmp_path: Path) -> None:
    text, expected = LOGS[name]
    (tmp_path / "log").write_text(text)
    assert last_error(tmp_path / "log") == expected
    assert last_error(tmp_path / "nowhere") is None


def test_comparison_gives_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, new = tmp_path / "run", tmp_path / "new"
    new.mkdir()
    record_submission(run, submission(run, "1"))
    (run / "jobs/1_0_log.out").write_text("mofore: error: it is so\n")
    assert main(["compare", str(run), str(new), "--out", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "run: no results: pretrain ended (job 1); it is so" in output
    assert f"new: no results: it has not been evaluated: mofore evaluate {new}" in output
    written = json.loads((tmp_path / "compare.json").read_text())
    assert set(written["failures"]) == {"run", "new"}
    assert (tmp_path / "compare.txt").read_text() in output
