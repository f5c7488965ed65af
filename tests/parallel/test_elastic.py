"""The same run on 1, 2, 4 ranks at ZeRO 0 to 3; any checkpoint resumes on any of them.

Equal means to fp32 rounding: sums over ranks and shards are taken in another order.
"""

import shutil
from pathlib import Path

import pytest
import torch

from mofore.config import PretrainConfig, compose
from tests.ranks import run_ranks, torchrun
from tests.small import SMALL, distance, metrics, state
from tests.test_training import assert_same_run, plain_loop, resume_from_half

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

WORLDS, STAGES = (1, 2, 4), (0, 1, 2, 3)
ALL = [(world, stage) for world in WORLDS for stage in STAGES]
# Every stage resumes as every other, and every number of ranks as every other.
MOVES = [((WORLDS[(a + b) % 3], a), (WORLDS[b % 3], b)) for a in STAGES for b in STAGES]
BF16_MOVES = [((1, 0), (2, 3)), ((2, 3), (1, 0)), ((2, 2), (4, 1)), ((4, 1), (2, 2))]


def name(place: tuple[int, int]) -> str:
    return f"ranks-{place[0]}-zero-{place[1]}"


def train_all(folder: Path, runs: dict[str, tuple[int, int]], *overrides: str) -> None:
    """One launch a number of ranks: run NAME at (ranks, stage)."""
    for world in WORLDS:
        specs = [
            f"{run}:engine.zero_stage={stage}"
            for run, (ranks, stage) in runs.items()
            if ranks == world
        ]
        if specs:
            run_ranks(
                world,
                "tests.train_runs",
                str(folder),
                ",".join(specs),
                *SMALL,
                *overrides,
                timeout=500,
            )


def move_all(folder: Path, whole: Path, moves: list, *overrides: str) -> None:
    runs = {f"{name(source)}-to-{name(to)}": to for source, to in moves}
    for source, to in moves:
        resume_from_half(whole / name(source), folder / f"{name(source)}-to-{name(to)}")
    train_all(folder, runs, *overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, manifest) -> Path:
    """Folder with an uninterrupted run of each place."""
    folder = tmp_path_factory.mktemp("whole")
    train_all(folder, {name(place): place for place in ALL}, f"data.manifest={manifest}")
    return folder


@pytest.fixture(scope="module")
def moved(tmp_path_factory, whole, manifest) -> Path:
    """Folder with the runs that resumed elsewhere at half their steps."""
    folder = tmp_path_factory.mktemp("moved")
    move_all(folder, whole, MOVES, f"data.manifest={manifest}")
    return folder


@pytest.fixture(scope="module")
def reference(manifest) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same run in a page of PyTorch, one process."""
    return plain_loop(compose(PretrainConfig, [*SMALL, f"data.manifest={manifest}"]))


@pytest.mark.parametrize("place", ALL, ids=name)
def test_every_place_is_plain_pytorch(whole, reference, place):
    """Teacher, student and forecaster; every parameter is there, and moved."""
    (expected, losses), run = reference, whole / name(place)
    trained = state(run, 4)
    assert [line["loss"] for line in metrics(run)] == pytest.approx(losses, rel=2e-4)
    assert {key for key in trained if key.startswith("weights/")} == expected.keys()
    assert distance(trained, expected, expected) < 1e-3
    assert distance(trained, expected, [key for key in expected if "teacher" in key]) < 5e-4
    half = state(run, 2)
    assert [key for key in half if torch.equal(half[key], trained[key])] == []


@pytest.mark.parametrize("place", ALL, ids=name)
def test_as_many_files_as_ranks_of_equal_size(whole, place):
    sizes = [
        path.stat().st_size
        for path in (whole / name(place) / "checkpoints" / "step-4").glob("*.safetensors")
    ]
    assert len(sizes) == place[0]
    assert max(sizes) < 1.2 * min(sizes)


@pytest.mark.parametrize(("source", "to"), MOVES, ids=str)
def test_a_checkpoint_resumes_anywhere(whole, moved, source, to):
    assert_same_run(moved / f"{name(source)}-to-{name(to)}", whole / name((1, 0)))


def test_every_pair_is_moved_between():
    assert {(source[0], to[0]) for source, to in MOVES} == {(a, b) for a in WORLDS for b in WORLDS}
    assert {(source[1], to[1]) for source, to in MOVES} == {(a, b) for a in STAGES for b in STAGES}


def test_stages_agree_under_autocast(tmp_path, manifest):
    """Gradients are reduced in fp32 at every stage, so stages 0 to 2 agree as they do in fp32.

    Stage 3 runs DeepSpeed's own linear layer, which rounds to bf16 once more before the bias, so
    its losses alone are compared.
    """
    overrides = ["engine.precision=bf16", f"data.manifest={manifest}"]
    train_all(tmp_path, {name((2, stage)): (2, stage) for stage in STAGES}, *overrides)
    runs = [tmp_path / name((2, stage)) for stage in STAGES]
    losses = [[line["loss"] for line in metrics(run)] for run in runs]
    teacher = [key for key in state(runs[0], 4) if key.startswith("weights/teacher.")]
    for stage in (1, 2):
        assert losses[stage] == pytest.approx(losses[0], rel=1e-5)
        assert distance(state(runs[stage], 4), state(runs[0], 4), teacher) < 1e-5
    assert losses[3] == pytest.approx(losses[0], rel=5e-3)


def test_under_autocast_too(tmp_path, manifest):
    """bf16 products, fp32 state: a move changes no more than the order of bf16 sums does."""
    overrides = ["engine.precision=bf16", f"data.manifest={manifest}"]
    places = {name(place): place for move in BF16_MOVES for place in move}
    train_all(tmp_path / "whole", places, *overrides)
    move_all(tmp_path, tmp_path / "whole", BF16_MOVES, *overrides)
    one = state(tmp_path / "whole" / name((1, 0)), 4)
    weights = [key for key in one if key.startswith("weights/")]
    apart = [distance(state(tmp_path / "whole" / other, 4), one, weights) for other in places]
    for source, to in BF16_MOVES:
        run = tmp_path / f"{name(source)}-to-{name(to)}"
        assert distance(state(run, 4), one, weights) <= 2 * max(apart)
        assert [line["loss"] for line in metrics(run)] == pytest.approx(
            [line["loss"] for line in metrics(tmp_path / "whole" / name((1, 0)))], rel=2e-2
        )


def test_another_number_of_ranks_must_divide_the_batch(tmp_path, whole, manifest):
    run = shutil.copytree(whole / name((1, 0)), tmp_path / "run")
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    with pytest.raises(
        AssertionError, match="global_batch=4 does not divide into micro-batches of 1 on 3 rank"
    ):
        torchrun(3, "mofore.train", *SMALL, f"data.manifest={manifest}", f"run_dir={run}")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
