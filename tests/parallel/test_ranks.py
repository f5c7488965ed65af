"""Two gloo ranks at every ZeRO stage equal stage 0, one process, and a resumed run."""

from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks, torchrun
from tests.small import SMALL, differing, metrics, state
from tests.test_training import assert_same_run, resume_from_half

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

STAGES = ["0", "1", "2", "3"]
RECOMPUTED = "3-recomputed"


def runs_of(stage: str) -> str:
    return f"zero-{stage}:engine.zero_stage={stage}"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, manifest) -> Path:
    """Folder with an uninterrupted run a stage, from one launch."""
    folder = tmp_path_factory.mktemp("two-ranks")
    runs = [
        *(runs_of(stage) for stage in STAGES),
        f"zero-{RECOMPUTED}:engine.zero_stage=3:backbone.grad_checkpoint_every=1",
    ]
    run_ranks(
        2, "tests.train_runs", str(folder), ",".join(runs), *SMALL, f"data.manifest={manifest}"
    )
    return folder


@pytest.fixture(scope="module")
def resumed(two_ranks, manifest) -> Path:
    """Folder with a run a stage that was taken up at half its steps, from one launch."""
    folder = two_ranks.with_name("two-ranks-resumed")
    folder.mkdir()
    for stage in STAGES:
        resume_from_half(two_ranks / f"zero-{stage}", folder / f"zero-{stage}")
    runs = ",".join(runs_of(stage) for stage in STAGES)
    run_ranks(2, "tests.train_runs", str(folder), runs, *SMALL, f"data.manifest={manifest}")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_the_uninterrupted_run(two_ranks, resumed, stage):
    run, whole = resumed / f"zero-{stage}", two_ranks / f"zero-{stage}"
    assert differing(state(run, 4), state(whole, 4)) == []
    assert metrics(run) == metrics(whole)


@pytest.mark.parametrize("stage", [*STAGES[1:], RECOMPUTED])
def test_every_stage_is_stage_0(two_ranks, stage):
    assert_same_run(two_ranks / f"zero-{stage}", two_ranks / "zero-0")


def test_recomputing_blocks_changes_nothing(two_ranks):
    assert (
        differing(state(two_ranks / f"zero-{RECOMPUTED}", 4), state(two_ranks / "zero-3", 4)) == []
    )


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_moves(two_ranks, stage):
    start, end = state(two_ranks / f"zero-{stage}", 2), state(two_ranks / f"zero-{stage}", 4)
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_one_process_with_the_same_global_batch(tmp_path, two_ranks, run_small):
    assert_same_run(run_small(tmp_path / "run", "micro_batch=1"), two_ranks / "zero-0")


def test_collectives():
    torchrun(2, "tests.collectives")
