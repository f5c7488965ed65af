"""Plans: time and cost, advice where memory is short, and the table of sizes."""

import argparse

import pytest

from mofore.config import PretrainConfig, compose
from mofore.gpus import GPU, find_gpu
from mofore.launch.plan_tables import sweep_table
from mofore.memory import count_parameters, rank_memory, rank_state
from mofore.plan import GIB, change_config, find_remedies, make_plan, memory_limit, suggest
from mofore.plan_sizes import plan_size
from mofore.precision import Precision
from tests.small import LARGE_BATCH, TINY

BF16 = Precision.bf16
H100 = find_gpu("h100")
SMALL_GPU = GPU("small", 2.2, 100.0, 50.0, 10.0)


def tiny(*overrides: str) -> PretrainConfig:
    return compose(PretrainConfig, ["data.manifest=none", *TINY, "global_batch=4", *overrides])


def test_time_and_cost() -> None:
    """Twice the ranks halve the time and change no cost; checkpointing repeats a forward pass."""
    assert H100
    one, two = (make_plan(tiny("steps=10"), ranks, H100, 0.4) for ranks in (1, 2))
    assert two.step_seconds == pytest.approx(one.step_seconds / 2)
    assert two.gpu_hours == pytest.approx(one.gpu_hours)
    rate = 0.4 * 989e12
    assert one.samples_per_second == pytest.approx(rate / one.flops.total)
    assert one.gpu_hours == pytest.approx(10 * 4 * one.flops.total / rate / 3600)
    slower = make_plan(tiny("backbone.grad_checkpoint_every=1"), 1, H100, 0.4)
    more = (one.flops.student + one.flops.forecaster) / 3
    assert slower.step_seconds / one.step_seconds == pytest.approx(1 + more / one.flops.total)


def test_remedies_fit() -> None:
    """Each changes the configuration so that it fits, which it did not before."""
    config = compose(PretrainConfig, list(LARGE_BATCH))
    limit = memory_limit(SMALL_GPU)
    assert rank_memory(config, 2, BF16).peak > limit
    remedies = find_remedies(config, 2, BF16, limit)
    assert {key for remedy in remedies for key in remedy.changes} == {
        "micro_batch",
        "backbone.grad_checkpoint_every",
    }
    for remedy in remedies:
        changed = change_config(config, remedy.changes)
        assert rank_memory(changed, 2, BF16).peak == remedy.peak <= limit


def test_the_suggested_micro_batch_is_the_largest_that_fits() -> None:
    config = compose(PretrainConfig, list(LARGE_BATCH))
    limit = memory_limit(SMALL_GPU)
    (size,) = (
        remedy.changes["micro_batch"]
        for remedy in find_remedies(config, 1, BF16, limit)
        if "micro_batch" in remedy.changes
    )
    assert rank_memory(change_config(config, {"micro_batch": 2 * size}), 1, BF16).peak > limit


def test_a_stage_is_suggested_if_the_state_is_too_large() -> None:
    bucket = "engine.deepspeed.zero_optimization.reduce_bucket_size=1e6"
    config = tiny("backbone.embed_dim=768", "backbone.num_heads=12", "micro_batch=1", bucket)
    parameters, precision = count_parameters(config), Precision.fp32
    limit = rank_state(config, 4, parameters).total
    first, *_ = find_remedies(config, 4, precision, limit)
    assert first.changes["engine.zero_stage"] in (1, 2, 3)
    assert not find_remedies(config, 1, precision, limit)


def test_suggestion() -> None:
    config = compose(PretrainConfig, list(LARGE_BATCH))
    text = suggest(config, 1, 5 * GIB // 2)
    assert "micro_batch=" in text
    assert "backbone.grad_checkpoint_every=1" in text
    assert "another process" in suggest(config, 1, 1000 * GIB).lower()
    assert "larger GPUs" in suggest(config, 1, 10**6)


def test_table_of_sizes() -> None:
    """Smallest first; the largest micro-batch fits, and a tenth more does not."""
    configs = {
        name: compose(PretrainConfig, [*LARGE_BATCH, f"backbone.depth={depth}"])
        for name, depth in (("deep", 4), ("flat", 2))
    }
    table = sweep_table(configs, argparse.Namespace(ranks=2, mfu=0.4), SMALL_GPU)
    assert list(table.columns[0].cells) == ["flat", "deep"]
    size = plan_size(configs["deep"], 2, SMALL_GPU, 0.4)
    assert size.stage == 1
    limit, videos = memory_limit(SMALL_GPU), size.micro_batches[0]

    def peak(number: int) -> int:
        changes = {"global_batch": 2 * number, "engine.zero_stage": 1}
        return rank_memory(change_config(configs["deep"], changes), 2, BF16).peak

    assert peak(videos) <= limit < peak(round(1.1 * videos))
    assert size.micro_batches[1] > videos
