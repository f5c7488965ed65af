"""What the tests train: a run of seconds, with every part of a large one in it."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from mofore.checkpoint.reader import Checkpoint

# Clips of two tubelets in time; a model whose step takes hundredths of a second.
TINY = (
    "backbone.embed_dim=48",
    "backbone.depth=2",
    "backbone.num_heads=3",
    "backbone.patch_size=8",
    "backbone.tubelet_size=2",
    "data.frames=4",
    "data.fps=12",
    "data.size=32",
    "data.gap.max=0.5",
    "forecaster.dim=48",
    "forecaster.depth=1",
    "forecaster.heads=3",
)
# For plans: what autograd keeps of 64 clips does not fit on a small GPU.
LARGE_BATCH = (
    "data.manifest=none",
    "backbone=vit_tiny",
    "backbone.depth=4",
    "forecaster.depth=1",
    "global_batch=64",
)
# Two targets, warm-up, decay, clipping and a checkpoint half way.
SMALL = (
    "steps=4",
    "global_batch=4",
    "workers=0",
    "checkpoint.every=2",
    "collapse.batch_rank_every=1",
    *TINY,
    "data.targets=2",
    "data.token_keep_ratio=1",
    "teacher.momentum=0.9",
    "optimizer.lr=1e-3",
    "optimizer.warmup_steps=2",
    "optimizer.weight_decay=0.5",
    "optimizer.clip_grad=1.0",
)

# the only metrics that two equal runs may tell differently
TIMES = (
    "samples_per_second",
    "data_wait_fraction",
    "communication_fraction",
    "mfu",
    "tflops_per_second",
    "peak_memory_gib",
)


def state(run: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its name: weights, both moments."""
    checkpoint = Checkpoint(run / "checkpoints" / f"step-{step}")
    return {name: checkpoint.tensor(name) for name in sorted(checkpoint.shapes)}


def metrics(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what only tells how long something took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are not the same bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def distance(a: dict[str, Tensor], b: dict[str, Tensor], names: Iterable[str]) -> float:
    """Largest relative distance |a - b| / |b| of the named tensors."""
    return max(
        float((a[name] - b[name]).norm() / b[name].norm().clamp(min=1e-12)) for name in names
    )
