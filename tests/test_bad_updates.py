"""bad_updates: they are skipped, too many roll back, and a transient fault leaves no trace."""

import json
import math
import shutil

import pytest
import torch

from mofore import step as module
from mofore.bad_updates import BadUpdateConfig, BadUpdatePolicy, UpdateOutcome
from mofore.errors import UserError
from tests.small import differing, metrics, state


def test_too_many_in_a_row_roll_back():
    policy = BadUpdatePolicy(BadUpdateConfig(max_consecutive=2))
    assert policy.record(1.0, 1.0) is UpdateOutcome.applied
    assert policy.record(math.nan, 1.0) is UpdateOutcome.skipped
    assert policy.record(1.0, 1.0) is UpdateOutcome.applied  # no longer consecutive
    assert policy.record(1.0, math.inf) is UpdateOutcome.skipped
    assert policy.record(math.inf, 1.0) is UpdateOutcome.rollback
    assert policy.state == {"skipped": 3, "consecutive": 2, "recent": [1.0, 1.0]}
    assert BadUpdatePolicy(BadUpdateConfig(), policy.state).state == policy.state
    assert json.loads(json.dumps(policy.state)) == policy.state


def test_a_spike_is_judged_by_the_last_losses():
    policy = BadUpdatePolicy(BadUpdateConfig(spike_threshold=6.0, window=20))
    assert policy.should_apply(1e9)  # nothing to judge by yet
    losses = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    assert all(policy.record(1 + loss, 1.0) is UpdateOutcome.applied for loss in losses)
    assert not policy.should_apply(5.0)
    assert policy.should_apply(2.0)
    assert policy.record(5.0, 1.0) is UpdateOutcome.skipped
    assert "bad_updates.spike_threshold=6.0" in policy.reason
    assert len(policy.state["recent"]) == 20
    assert 5.0 not in policy.state["recent"]
    assert BadUpdatePolicy(BadUpdateConfig(), policy.state).should_apply(1e9)  # off by default


def break_steps(monkeypatch, broken: dict[int, float]) -> list[int]:
    """Break the loss of these calls of `backward_and_step`; returns the calls that were broken."""
    calls, done = [], []
    real = module.backward_and_step

    def faulty(engine, loss):
        calls.append(1)
        if len(calls) in broken:
            done.append(len(calls))
            loss = loss * broken[len(calls)]
        return real(engine, loss)

    monkeypatch.setattr(module, "backward_and_step", faulty)
    return done


@pytest.mark.parametrize("zero", [0, 2])
def test_a_bad_update_is_skipped_and_counted(tmp_path, run_small, monkeypatch, zero):
    overrides = [f"engine.zero_stage={zero}", "checkpoint.every=1", "checkpoint.keep_last=9"]
    done = break_steps(monkeypatch, {2: math.nan})
    run = run_small(tmp_path / "run", *overrides)
    assert done == [2]
    assert differing(state(run, 1), state(run, 3)) != []
    assert not (run / "checkpoints" / "step-2").exists()  # none is saved between skipped updates
    assert [line["skipped_updates"] for line in metrics(run)] == [0, 1, 1, 1]
    assert [line["grad_norm"] is None for line in metrics(run)] == [False, True, False, False]
    assert all(tensor.isfinite().all() for tensor in state(run, 4).values())
    monkeypatch.undo()
    # the count of updates that corrects the moments' bias is saved: resuming from step 3 is the
    # same run
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-4")
    run_small(copy, *overrides)
    assert differing(state(copy, 4), state(run, 4)) == []
    assert metrics(copy) == metrics(run)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_skipped_update_changes_nothing(tmp_path, run_small, monkeypatch, zero):
    overrides = [
        f"engine.zero_stage={zero}",
        "steps=3",
        "checkpoint.every=1",
        "checkpoint.keep_last=9",
        "bad_updates.max_consecutive=5",
    ]
    break_steps(monkeypatch, {3: math.inf})
    run = run_small(tmp_path / "run", *overrides)
    assert differing(state(run, 3), state(run, 2)) == []


@pytest.mark.parametrize("zero", [0, 2])
def test_a_fault_that_is_gone_leaves_no_trace(tmp_path, run_small, monkeypatch, caplog, zero):
    overrides = [
        f"engine.zero_stage={zero}",
        "steps=6",
        "bad_updates.max_consecutive=2",
        "workers=1",
    ]
    whole = run_small(tmp_path / "whole", *overrides)
    break_steps(monkeypatch, {4: math.nan, 5: math.nan})
    run = run_small(tmp_path / "run", *overrides)
    assert "Steps 4 to 5 failed: the loss or its gradient is not finite" in caplog.text
    assert "Rolling back to step 2" in caplog.text
    assert differing(state(run, 6), state(whole, 6)) == []
    assert metrics(run) == metrics(whole)
    (line,) = (run / "bad_updates.jsonl").read_text().splitlines()
    seen = json.loads(line)
    assert seen["steps"] == [4, 5]
    assert {number: len(videos) for number, videos in seen["samples"].items()} == {"4": 4, "5": 4}
    assert all("texture" in video for videos in seen["samples"].values() for video in videos)


def test_a_fault_that_recurs_stops_the_run(tmp_path, run_small):
    run = tmp_path / "run"
    overrides = ["optimizer.lr=1e30", "optimizer.warmup_steps=0", "checkpoint.every=1", "steps=9"]
    with pytest.raises(UserError) as stopped:
        run_small(run, *overrides)
    message = str(stopped.value)
    assert "Steps 2 to 4 failed: the loss or its gradient is not finite" in message
    assert "again, with the same samples" in message
    assert "bad_updates.jsonl" in message
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-1"]
    # at once, though the process is another
    with pytest.raises(UserError, match="again, with the same samples"):
        run_small(run, *overrides)
    assert len((run / "bad_updates.jsonl").read_text().splitlines()) == 3


def test_without_a_checkpoint_there_is_no_way_back(tmp_path, run_small):
    overrides = ["optimizer.lr=1e30", "optimizer.warmup_steps=0", "checkpoint.every=100", "steps=9"]
    with pytest.raises(UserError, match="and there is no checkpoint yet"):
        run_small(tmp_path / "run", *overrides)


def test_a_spike_is_skipped(tmp_path, run_small, monkeypatch):
    """The loss of one step is a thousand times larger; its gradient is finite."""
    real, calls = module.all_reduce_mean, []

    def spiked(values):
        calls.append(values)
        return real(values) * (1000 if len(calls) == 8 else 1)

    monkeypatch.setattr(module, "all_reduce_mean", spiked)
    overrides = ["steps=10", "bad_updates.spike_threshold=20", "bad_updates.window=10"]
    run = run_small(tmp_path / "run", *overrides)
    assert [line["skipped_updates"] for line in metrics(run)] == [0] * 7 + [1] * 3
    assert metrics(run)[7]["loss"] > 1000
