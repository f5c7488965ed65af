"""heartbeat: a dead or stopped rank ends the others in time, with its number; ranks that drift apart are named."""

import contextlib
import json
import signal
import socket
import time
from pathlib import Path

import pytest
from deepspeed.comm.torch import TorchBackend

from mofore import heartbeat as module
from mofore.errors import UserError
from mofore.heartbeat import LOST, Heartbeat, agree
from tests.ranks import run_ranks, start_tasks
from tests.small import SMALL
from tests.test_training import wait_for_steps

TIMEOUT = 20  # seconds; more than workers take to start on a busy machine


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_the_others(tmp_path, manifest, number, which):
    """Within the configured time, with a sentence that names it and the code that says: go on later."""
    run = tmp_path / "run"
    words = [
        *SMALL,
        f"data.manifest={manifest}",
        f"run_dir={run}",
        "steps=100000",
        f"engine.timeout={TIMEOUT}",
    ]
    tasks = start_tasks(2, tmp_path, "mofore.train", *words, "checkpoint.every=5", "workers=1")
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
    said = (tmp_path / f"rank-{lost}.log").read_text()
    assert code == LOST, said
    assert f"mofore: rank {lost} stops: " in said
    assert f"rank {which}" in said.split(f"mofore: rank {lost} stops: ")[1]
    assert "Traceback" not in said.split("mofore: rank")[0]
    assert took < 2 * TIMEOUT
    print(said.splitlines()[-1], f"({took:.1f} s)")
    end = time.monotonic() + 10
    while left := processes_of(tmp_path):
        assert time.monotonic() < end, f"left behind, workers among them: {left}"
        time.sleep(0.2)


@pytest.mark.ranks
@pytest.mark.slow
def test_a_rank_that_is_stopped_while_the_run_starts(tmp_path, manifest):
    """DeepSpeed's own groups would wait for it for half an hour."""
    run = tmp_path / "run"
    words = [*SMALL, f"data.manifest={manifest}", f"run_dir={run}", f"engine.timeout={TIMEOUT}"]
    tasks = start_tasks(2, tmp_path, "mofore.train", *words)
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
    said = (tmp_path / "rank-0.log").read_text()
    assert code == LOST, said
    assert "mofore: rank 0 stops: " in said
    assert time.monotonic() - began < 3 * TIMEOUT


@pytest.mark.ranks
@pytest.mark.slow
def test_the_host_of_the_store_is_stopped_before_the_ranks_have_met(tmp_path, manifest):
    """A client of torch's store waits for it without end."""
    words = [*SMALL, f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}", "engine.timeout=4"]
    with socket.socket() as silent:  # takes connections and never answers, as a stopped process does
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (task,) = start_tasks(1, tmp_path, "mofore.train", *words, RANK="1", WORLD_SIZE="2",
                              MASTER_PORT=str(silent.getsockname()[1]))  # fmt: skip
        try:
            code = task.wait(timeout=120)
        finally:
            task.kill()
            task.wait()
    said = (tmp_path / "rank-0.log").read_text()
    assert code == LOST, said
    assert "mofore: rank 1 stops: " in said


def test_ranks_do_not_meet_in_shared_memory():
    """Where DeepSpeed waits without end; it would also compile for a minute, and say so on every start."""
    assert TorchBackend.__init__.__globals__["build_shm_op"]() is None


def processes_of(log: Path) -> list[str]:
    """Ranks that `start_tasks` started with this folder for their logs, and all that came of them."""
    mark, found = f"TASKS_OF={log}".encode(), []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in environment.read_bytes():
                found.append(environment.parent.name)
    return found


def test_a_rank_that_is_alone_and_stuck_ends(monkeypatch):
    ended = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    with Heartbeat(0.5) as heart:
        heart.at("waits for data")
        end = time.monotonic() + 5
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
    assert ended[0] == LOST


def test_a_rank_that_moves_is_left_alone(monkeypatch):
    ended = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    with Heartbeat(0.5) as heart:
        for step in range(20):
            heart.at(f"computes step {step}")
            time.sleep(0.1)
    assert ended == []


def test_its_threads_end_before_it_does():
    """Python ends a process by SIGABRT whose thread is in torch's store when it finishes: a done run looked failed."""
    with Heartbeat(5) as heart:
        heart._start(lambda: time.sleep(0.5))
    assert not any(thread.is_alive() for thread in heart.threads)


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shape"), Heartbeat(1):
        raise RuntimeError("shape of a tensor")


def drifted(monkeypatch, *facts: dict) -> str:
    monkeypatch.setattr(
        module, "gather_objects", lambda _: [json.dumps({"step": 20, **one}) for one in facts]
    )
    with pytest.raises(UserError) as stopped:
        agree(20, facts[0])
    return str(stopped.value)


def test_who_drifted_apart_is_named(monkeypatch):
    same, other = {"loss": 1.5, "samples": "ab"}, {"loss": 1.5, "samples": "cd"}
    said = drifted(monkeypatch, same, same, other, same)
    assert "step 20: rank 2 in samples (cd, not ab) differs from the other ranks" in said
    said = drifted(monkeypatch, same, other)
    assert 'rank 0 has {"step": 20, "loss": 1.5, "samples": "ab"}; rank 1 has' in said
    monkeypatch.undo()
    agree(20, same)  # alone it always agrees


@pytest.mark.ranks
@pytest.mark.slow
def test_a_bit_that_flips_on_one_rank_is_found(tmp_path, manifest):
    """In the weights of rank 1, after step 3: found at the next comparison of that tensor."""
    said = run_ranks(2, "tests.drifting", str(tmp_path / "run"), *SMALL, f"data.manifest={manifest}")
    assert said.count("the ranks have drifted apart: rank 0 has") == 2, said
