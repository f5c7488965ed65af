"""FLOPs by arithmetic equal those that torch counts while a real step runs."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mofore.config import PretrainConfig, compose
from mofore.flops import flops_per_video
from mofore.models.objective import build_pretraining
from mofore.profiling import random_batch
from tests.small import TINY

VIDEOS = 4
aten = torch.ops.aten


def _forward(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: object, **___: object):
    """Four products, without the scores that flash attention computes again."""
    return 2 * sdpa_flop_count(query, key, value)


# torch's counter knows attention on GPUs only, and counts a fifth product in its backward.
ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
RECIPES = {
    "default": [],
    "several targets": ["data.targets=3"],
    "sparse": ["data.targets=2", "data.token_keep_ratio=0.2", "teacher.token_keep_ratio=0.3"],
    "all tokens": ["data.token_keep_ratio=1"],
    "one direction": ["loss.query=context", "data.targets=2"],
    "forecast as query": ["loss.query=forecast"],
    "no contrast": ["loss.contrastive_weight=0"],
    "per frame": ["backbone.attention=per_frame", "data.token_keep_ratio=1"],
    "prefix tokens, pooled": ["forecaster.kind=mlp", "backbone.reg_tokens=4"],
    "published": ["experiment=paper", "backbone.tubelet_size=1", "data.frames=4"],
    "other blocks": ["backbone.depth=3", "forecaster.depth=2", "forecaster.dim=24"],
}


def tiny_config(*overrides: str) -> PretrainConfig:
    fixed = ["data.manifest=none", *TINY]
    return compose(PretrainConfig, [*fixed, *overrides, f"global_batch={VIDEOS}"])


def counted_flops(config: PretrainConfig) -> float:
    """Per video, of forward and backward of a real step."""
    model = build_pretraining(config.model(), 0)
    batch = random_batch(config, VIDEOS, torch.device("cpu"))
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        targets = model(batch)
        model(batch, targets, targets.keys).total.backward()
    return counter.get_total_flops() / VIDEOS


@pytest.mark.parametrize("recipe", RECIPES)
def test_flops_are_those_that_torch_counts(recipe: str) -> None:
    config = tiny_config(*RECIPES[recipe])
    assert flops_per_video(config).total == pytest.approx(counted_flops(config), rel=1e-3)


def test_recomputed_blocks_do_not_count() -> None:
    config = tiny_config("backbone.grad_checkpoint_every=1")
    assert flops_per_video(config) == flops_per_video(tiny_config())
    assert counted_flops(config) > 1.1 * flops_per_video(config).total


def test_the_global_batch_counts_in_the_contrast_alone() -> None:
    """Each query is compared with the keys of all videos."""
    flops = [
        flops_per_video(compose(PretrainConfig, ["data.manifest=none", *TINY, f"global_batch={n}"]))
        for n in (64, 128, 192)
    ]
    assert len({each[:3] for each in flops}) == 1
    first, second = (b.contrast - a.contrast for a, b in itertools.pairwise(flops))
    assert first == second > 0
