"""Shared by the tests of the models: small configurations, and batches of random clips."""

import torch

from mofore.config import PretrainConfig, compose
from mofore.models.objective import ModelConfig, Pretraining
from mofore.types import Batch, Losses
from tests.small import SMALL

PAPER = (
    "experiment=paper",
    "backbone.depth=2",
    "backbone.embed_dim=48",
    "backbone.num_heads=3",
    "data.frames=4",
    "data.size=32",
    "forecaster.dim=24",
)
TOKENS = 32  # of a clip of SMALL: 2 time steps of 4 x 4


def model_config(overrides: tuple[str, ...] = SMALL) -> ModelConfig:
    return compose(PretrainConfig, [*overrides, "data.manifest=x"]).model()


def random_batch(videos: int = 4, targets: int = 2, seed: int = 0) -> Batch:
    """Clips of SMALL and PAPER; student and teacher see all tokens."""
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(
        0, 256, (videos, targets + 1, 3, 4, 32, 32), dtype=torch.uint8, generator=generator
    )
    gaps = torch.rand(videos, targets, generator=generator)
    none = torch.zeros(videos, 0, dtype=torch.int64)
    return Batch(clips[:, 0], clips[:, 1:], gaps, torch.arange(videos), none, none)


def random_tokens(videos: int, count: int, seed: int) -> torch.Tensor:
    """i64 [videos, count], ascending, from the tokens of a clip."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(TOKENS, generator=generator) for _ in range(videos)]
    return torch.stack(orders)[:, :count].sort(dim=1).values


def compute_losses(model: Pretraining, batch: Batch) -> Losses:
    targets = model(batch)
    return model(batch, targets, targets.keys)
