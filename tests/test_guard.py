"""guard: bad updates are skipped, a streak of them goes back, and a fault that is gone leaves no trace."""

import json
import math
import shutil

import pytest
import torch

from mofore import train as module
from mofore.errors import UserError
from mofore.guard import Fate, Guard, GuardConfig
from tests.small import differing, metrics, state


def test_a_streak_goes_back():
    guard = Guard(GuardConfig(skips=2))
    assert guard.note(1.0, 1.0) is Fate.taken
    assert guard.note(math.nan, 1.0) is Fate.skipped
    assert guard.note(1.0, 1.0) is Fate.taken  # the streak is broken
    assert guard.note(1.0, math.inf) is Fate.skipped
    assert guard.note(math.inf, 1.0) is Fate.back
    assert guard.state == {"skipped": 3, "streak": 2, "recent": [1.0, 1.0]}
    assert Guard(GuardConfig(), guard.state).state == guard.state
    assert json.loads(json.dumps(guard.state)) == guard.state


def test_a_spike_is_judged_by_the_last_losses():
    guard = Guard(GuardConfig(spike=6.0, window=20))
    assert guard.allows(1e9)  # nothing to judge by yet
    losses = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    assert all(guard.note(1 + loss, 1.0) is Fate.taken for loss in losses)
    assert not guard.allows(5.0)
    assert guard.allows(2.0)
    assert guard.note(5.0, 1.0) is Fate.skipped
    assert "guard.spike=6.0" in guard.reason
    assert len(guard.state["recent"]) == 20
    assert 5.0 not in guard.state["recent"]
    assert Guard(GuardConfig(), guard.state).allows(1e9)  # off by default


def break_steps(monkeypatch, broken: dict[int, float]) -> list[int]:
    """Make the loss of the n-th call of `backward_and_step` not finite, as a fault of the hardware would; the calls
    that were broken.
    """
    calls, done = [], []
    real = module.backward_and_step

    def faulty(engine, loss, allowed=True):
        calls.append(1)
        if len(calls) in broken:
            done.append(len(calls))
            loss = loss * broken[len(calls)]
        return real(engine, loss, allowed)

    monkeypatch.setattr(module, "backward_and_step", faulty)
    return done


@pytest.mark.parametrize("zero", [0, 2])
def test_a_bad_update_is_skipped_and_counted(tmp_path, run_small, monkeypatch, zero):
    words = [f"engine.zero={zero}", "checkpoint.every=1", "checkpoint.keep_last=9"]
    done = break_steps(monkeypatch, {2: math.nan})
    run = run_small(tmp_path / "run", *words)
    assert done == [2]
    assert differing(state(run, 1), state(run, 3)) != []
    assert not (run / "checkpoints" / "step-2").exists()  # none is taken within a streak
    assert [line["skipped"] for line in metrics(run)] == [0, 1, 1, 1]
    assert [line["grad_norm"] is None for line in metrics(run)] == [False, True, False, False]
    assert all(tensor.isfinite().all() for tensor in state(run, 4).values())
    monkeypatch.undo()
    # the count of updates that corrects the moments' bias is saved: going on from step 3 is the same run
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-4")
    run_small(copy, *words)
    assert differing(state(copy, 4), state(run, 4)) == []
    assert metrics(copy) == metrics(run)


@pytest.mark.parametrize("zero", [0, 1])
def test_a_skipped_update_changes_nothing(tmp_path, run_small, monkeypatch, zero):
    words = [
        f"engine.zero={zero}",
        "steps=3",
        "checkpoint.every=1",
        "checkpoint.keep_last=9",
        "guard.skips=5",
    ]
    break_steps(monkeypatch, {3: math.inf})
    run = run_small(tmp_path / "run", *words)
    assert differing(state(run, 3), state(run, 2)) == []


@pytest.mark.parametrize("zero", [0, 2])
def test_a_fault_that_is_gone_leaves_no_trace(tmp_path, run_small, monkeypatch, capfd, zero):
    words = [f"engine.zero={zero}", "steps=6", "guard.skips=2", "workers=1"]
    whole = run_small(tmp_path / "whole", *words)
    break_steps(monkeypatch, {4: math.nan, 5: math.nan})
    run = run_small(tmp_path / "run", *words)
    assert "steps 4 to 5: the loss or its gradient is not finite" in (said := capfd.readouterr().err)
    assert "back to step 2" in said
    assert differing(state(run, 6), state(whole, 6)) == []
    assert metrics(run) == metrics(whole)
    (line,) = (run / "bad_steps.jsonl").read_text().splitlines()
    seen = json.loads(line)
    assert seen["steps"] == [4, 5]
    assert {number: len(videos) for number, videos in seen["samples"].items()} == {"4": 4, "5": 4}
    assert all("texture" in video for videos in seen["samples"].values() for video in videos)


def test_a_fault_that_recurs_stops_the_run(tmp_path, run_small):
    run = tmp_path / "run"
    words = ["optimizer.lr=1e30", "optimizer.warmup=0", "checkpoint.every=1", "steps=9"]
    with pytest.raises(UserError) as stopped:
        run_small(run, *words)
    said = str(stopped.value)
    assert "steps 2 to 4: the loss or its gradient is not finite" in said
    assert "again, with the same samples" in said
    assert "bad_steps.jsonl" in said
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-1"]
    with pytest.raises(
        UserError, match="again, with the same samples"
    ):  # at once, though the process is another
        run_small(run, *words)
    assert len((run / "bad_steps.jsonl").read_text().splitlines()) == 3


def test_without_a_checkpoint_there_is_no_way_back(tmp_path, run_small):
    words = ["optimizer.lr=1e30", "optimizer.warmup=0", "checkpoint.every=100", "steps=9"]
    with pytest.raises(UserError, match="and there is no checkpoint to go back to"):
        run_small(tmp_path / "run", *words)


def test_a_spike_is_skipped(tmp_path, run_small, monkeypatch):
    """The loss of one step is a thousand times larger; its gradient is finite."""
    real, calls = module.mean, []

    def spiked(values):
        calls.append(values)
        return real(values) * (1000 if values.numel() == 4 and sum(v.numel() == 4 for v in calls) == 8 else 1)

    monkeypatch.setattr(module, "mean", spiked)
    words = ["steps=10", "guard.spike=20", "guard.window=10"]
    run = run_small(tmp_path / "run", *words)
    assert [line["skipped"] for line in metrics(run)] == [0] * 7 + [1] * 3
    assert metrics(run)[7]["loss"] > 1000
