"""liveness: a lost rank ends the others in time, and is named; so are diverged ranks."""

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest

from mofore.errors import EXIT_RESUMABLE, UserError
from mofore.parallel import liveness as module
from mofore.parallel.liveness import Heartbeat, check_ranks_agree
from tests.ranks import run_ranks, start_tasks
from tests.small import SMALL
from tests.test_training import wait_for_steps

TIMEOUT = 20  # seconds; more than workers take to start on a busy machine


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize(("number", "which"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_lost_rank_ends_the_others(tmp_path, manifest, number, which):
    """Within the configured time, with a message that names it and exit code 75."""
    run = tmp_path / "run"
    overrides = [
        *SMALL,
        f"data.manifest={manifest}",
        f"run_dir={run}",
        "steps=100000",
        f"engine.timeout={TIMEOUT}",
    ]
    tasks = start_tasks(2, tmp_path, "mofore.train", *overrides, "checkpoint.every=5", "workers=1")
    try:
        wait_for_steps(run, 7, tasks[0])
        tasks[which].send_signal(number)
        lost, began = 1 - which, time.monotonic()
        code = tasks[lost].wait(timeout=4 * TIMEOUT)
        took = time.monotonic() - began
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    output = (tmp_path / f"rank-{lost}.log").read_text()
    assert code == EXIT_RESUMABLE, output
    assert f"Rank {lost} stops: " in output
    assert f"rank {which}" in output.split(f"Rank {lost} stops: ")[1]
    assert "Traceback" not in output.split("Rank ")[0]
    assert took < 2 * TIMEOUT
    print(output.splitlines()[-1], f"({took:.1f} s)")
    end = time.monotonic() + 10
    while left := processes_of(tmp_path):
        assert time.monotonic() < end, f"left behind, workers among them: {left}"
        time.sleep(0.2)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_rank_that_is_stopped_while_the_run_starts(tmp_path, manifest):
    """DeepSpeed's own groups would wait for it for half an hour."""
    run = tmp_path / "run"
    overrides = [*SMALL, f"data.manifest={manifest}", f"run_dir={run}", f"engine.timeout={TIMEOUT}"]
    tasks = start_tasks(2, tmp_path, "mofore.train", *overrides)
    try:
        end = time.monotonic() + 120
        while not (run / "owner.json").exists() and time.monotonic() < end:
            time.sleep(0.001)
        tasks[1].send_signal(signal.SIGSTOP)
        code, began = tasks[0].wait(timeout=120), time.monotonic()
    finally:
        for task in tasks:
            task.kill()
            task.wait()
    output = (tmp_path / "rank-0.log").read_text()
    assert code == EXIT_RESUMABLE, output
    assert "Rank 0 stops: " in output
    assert time.monotonic() - began < 3 * TIMEOUT


@pytest.mark.ranks
@pytest.mark.slow
def test_the_host_of_the_store_is_stopped_before_the_ranks_have_met(tmp_path, manifest):
    """A client of torch's store waits for it without end."""
    overrides = [
        *SMALL,
        f"data.manifest={manifest}",
        f"run_dir={tmp_path / 'run'}",
        "engine.timeout=4",
    ]
    # takes connections and never answers, as a stopped process does
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (task,) = start_tasks(
            1,
            tmp_path,
            "mofore.train",
            *overrides,
            RANK="1",
            WORLD_SIZE="2",
            MASTER_PORT=str(silent.getsockname()[1]),
        )
        try:
            code = task.wait(timeout=120)
        finally:
            task.kill()
            task.wait()
    output = (tmp_path / "rank-0.log").read_text()
    assert code == EXIT_RESUMABLE, output
    assert "Rank 1 stops: " in output


def processes_of(log: Path) -> list[str]:
    """Ranks that `start_tasks` started with this log folder, and their children."""
    mark, found = f"TASKS_OF={log}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes():
                found.append(environment.parent.name)
    return found


def test_a_rank_that_is_alone_and_stuck_ends(monkeypatch):
    ended = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    with Heartbeat(0.5) as heartbeat:
        heartbeat.set_activity("waits for data")
        end = time.monotonic() + 5
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
    assert ended[0] == EXIT_RESUMABLE


def test_a_rank_that_makes_progress_is_left_alone(monkeypatch):
    ended = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    with Heartbeat(0.5) as heartbeat:
        for step in range(20):
            heartbeat.set_activity(f"computes step {step}")
            time.sleep(0.1)
    assert ended == []


def test_its_threads_end_before_it_does():
    """A thread inside torch's store at exit aborts Python, so a finished run looked failed."""
    with Heartbeat(5) as heartbeat:
        heartbeat._start_thread(lambda: time.sleep(0.5))
    assert not any(thread.is_alive() for thread in heartbeat.threads)


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shape"), Heartbeat(1):
        raise RuntimeError("shape of a tensor")


def divergence(monkeypatch, *facts: dict) -> str:
    monkeypatch.setattr(
        module, "all_gather_objects", lambda _: [json.dumps({"step": 20, **one}) for one in facts]
    )
    with pytest.raises(UserError) as stopped:
        check_ranks_agree(20, facts[0])
    return str(stopped.value)


def test_a_diverged_rank_is_named(monkeypatch):
    same, other = {"loss": 1.5, "samples": "ab"}, {"loss": 1.5, "samples": "cd"}
    output = divergence(monkeypatch, same, same, other, same)
    assert "Step 20: rank 2 in samples (cd, not ab) differs from the other ranks" in output
    output = divergence(monkeypatch, same, other)
    assert 'rank 0: {"step": 20, "loss": 1.5, "samples": "ab"}; rank 1: ' in output
    monkeypatch.undo()
    check_ranks_agree(20, same)  # one rank always agrees


@pytest.mark.ranks
@pytest.mark.slow
def test_a_bit_that_flips_on_one_rank_is_found(tmp_path, manifest):
    """In the weights of rank 1, after step 3: found at the next comparison of that tensor."""
    output = run_ranks(
        2, "tests.drifting", str(tmp_path / "run"), *SMALL, f"data.manifest={manifest}"
    )
    assert output.count("the ranks have diverged: rank 0: ") == 2, output
