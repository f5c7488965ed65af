"""Planned memory against what real engines, the model and checkpoints take."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.plan import CHECKPOINTING, Measured, measure_activations
from benchmarks.processes import run_json
from mofore.checkpoint.reader import find_latest_checkpoint
from mofore.config import PretrainConfig, compose, read_config
from mofore.memory import checkpoint_bytes, count_parameters, rank_memory, rank_state
from mofore.plan import change_config
from mofore.precision import Precision
from mofore.step_memory import GradientUse, step_memory
from tests.ranks import run_ranks
from tests.small import TINY

BF16 = Precision.bf16


def tiny(*overrides: str) -> PretrainConfig:
    return compose(PretrainConfig, ["data.manifest=none", *TINY, "global_batch=4", *overrides])


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_memory_of_ranks(stage: int) -> None:
    """Of two ranks with real engines: between two steps, and at most during a step."""
    size = ("backbone.depth=2", "global_batch=8", "forecaster.depth=1")
    output = run_ranks(2, "benchmarks.plan", "--rank", *size, f"engine.zero_stage={stage}")
    (line,) = (line for line in output.splitlines() if line.startswith("{"))
    found = Measured(**json.loads(line))
    assert found.planned_held == pytest.approx(found.held, rel=0.05)
    assert found.planned_peak == pytest.approx(found.peak, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", [(), (CHECKPOINTING,)], ids=["whole", "checkpointed"])
def test_memory_of_a_gpu(overrides: tuple[str, ...], cuda: torch.device) -> None:
    """Of one rank's step in bf16, against torch.cuda.max_memory_allocated."""
    size = ("backbone=vit_base", "data.frames=16", "data.size=224", "global_batch=8")
    argv = ["--rank", *size, "engine.compile=never", *overrides]
    found = Measured(**run_json("benchmarks.plan", *argv, ranks=1))
    assert found.planned_peak == pytest.approx(found.peak, rel=0.05)


RECIPES = {
    "default": [],
    "checkpointed": [CHECKPOINTING],
    "every second block": ["backbone.grad_checkpoint_every=2"],
    "sparse": ["data.targets=2", "data.token_keep_ratio=0.2", "teacher.token_keep_ratio=0.3"],
    "per frame": ["backbone.attention=per_frame", "data.token_keep_ratio=1"],
    "pooled": ["forecaster.kind=mlp", "backbone.reg_tokens=4", "backbone.patch_norm=true"],
    "forecast as query": ["loss.query=forecast"],
}


@pytest.mark.parametrize("precision", [Precision.fp32, BF16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_activations_are_those_that_autograd_saves(recipe: str, precision: Precision) -> None:
    config = tiny(*RECIPES[recipe], f"engine.precision={precision.name}")
    planned = step_memory(config, 4, precision, GradientUse(), on_gpu=False).saved
    assert planned == pytest.approx(measure_activations(config, 4), rel=0.05)


def test_activations_of_a_block_on_a_gpu() -> None:
    """Under bf16, per token and width: 16 numbers that the products and norms need, and attention's
    own. Those of the fp32 weights are copies in bf16.
    """
    dim, heads, videos = 48, 3, 4
    saved = [
        step_memory(tiny(f"backbone.depth={depth}"), videos, BF16, GradientUse()).saved
        for depth in (2, 3)
    ]
    tokens = 2 * videos * (tiny().tokens // 2) + 2 * videos  # half are visible; class tokens
    norms, sums = 2 * 2 * 4, 4 * heads  # fp32 mean and deviation of two norms; of the softmax
    weights = 12 * dim**2 + 4 * dim  # of four Linear layers, and of two norms
    expected = tokens * (2 * 16 * dim + norms + sums) + 2 * weights
    assert saved[1] - saved[0] == pytest.approx(expected, rel=0.01)


def test_checkpoint_size(run_small, tmp_path: Path) -> None:
    """The bytes of all tensors of a real checkpoint."""
    run = run_small(tmp_path / "run", "steps=2")
    checkpoint, _ = find_latest_checkpoint(run)
    assert checkpoint is not None
    size = sum(4 * torch.Size(shape).numel() for shape in checkpoint.shapes.values())
    assert checkpoint_bytes(count_parameters(read_config(run / "config.yaml"))) == size


def test_state_by_stage() -> None:
    """Stage 1 shards moments and the second copy of the weights, stage 3 everything."""
    parameters = count_parameters(tiny())
    states = [rank_state(tiny(f"engine.zero_stage={n}"), 4, parameters) for n in range(4)]
    trained, fixed = 4 * parameters.trained, 4 * parameters.fixed
    assert states[0].total == 3 * trained + fixed
    assert states[1] == states[2]
    assert states[1].total == trained + 3 * trained // 4 + fixed
    assert states[3].total == pytest.approx((4 * trained + fixed) / 4, abs=8)
    offloaded = "engine.deepspeed.zero_optimization.offload_optimizer.device=cpu"
    state = rank_state(tiny("engine.zero_stage=1", offloaded), 4, parameters)
    assert state.total == trained + fixed


def test_memory_grows_with_the_micro_batch_and_shrinks_with_checkpointing() -> None:
    keys = ("backbone=vit_tiny", "backbone.depth=4", "data.size=112", "global_batch=64")
    config = compose(PretrainConfig, ["data.manifest=none", "forecaster.depth=1", *keys])
    whole, half, checkpointed = (
        rank_memory(change_config(config, changes), 1, BF16)
        for changes in ({}, {"micro_batch": 32}, {"backbone.grad_checkpoint_every": 1})
    )
    assert whole.activations == pytest.approx(2 * half.activations, rel=0.05)
    assert checkpointed.activations < 0.4 * whole.activations
    assert half.state == checkpointed.state == whole.state
    assert max(half.peak, checkpointed.peak) < whole.peak
