"""Context tokens [B, N, D] and gaps [B, K] in seconds -> forecasts of the teacher's latents [B, K, M, D].

The transformer forecasts every token of the target clip (M = N); the published MLP forecasts its mean (M = 1).
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from einops import rearrange, repeat
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.models.encoder import pick, run_blocks
from mofore.models.positions import sincos, sincos_space


class ForecasterKind(Enum):
    transformer = "transformer"
    mlp = "mlp"  # as published: two layers on the pooled clip, blind to the gap


@dataclass
class ForecasterConfig:
    kind: ForecasterKind = ForecasterKind.transformer
    dim: int = 192  # width of the transformer, or hidden width of the MLP
    depth: int = 4  # blocks of the transformer
    heads: int = 6

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads:
            raise UserError(
                f"forecaster.dim={self.dim} must be a multiple of forecaster.heads={self.heads}, and "
                f"forecaster.depth={self.depth} at least 1."
            )


class TransformerForecaster(nn.Module):
    """Queries carry a place in the target clip and its gap; with the context tokens they pass through timm blocks.

    Targets are forecast independently, so a forecast does not depend on which other gaps were drawn.
    """

    def __init__(
        self, config: ForecasterConfig, encoder_dim: int, steps: int, side: int, checkpoint_every: int
    ) -> None:
        super().__init__()
        self.checkpoint_every = checkpoint_every
        self.context = nn.Linear(encoder_dim, config.dim)
        self.gap = GapEmbedding(config.dim)
        # [1, N, d] each: time and space together, since the grid of a run does not change
        places = (sincos(steps, config.dim)[:, None] + sincos_space(side, config.dim)[None]).flatten(0, 1)[
            None
        ]
        self.context_places, self.query_places = nn.Parameter(places.clone()), nn.Parameter(places.clone())
        self.query = nn.Parameter(torch.zeros(1, 1, config.dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, qkv_bias=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.out = nn.Linear(config.dim, encoder_dim)

    def forward(self, tokens: Tensor, gaps: Tensor, kept: Tensor | None = None) -> Tensor:
        """`kept`: i64 [B, M], the places of the context's tokens where they are not all."""
        batch, targets = gaps.shape
        places = self.context_places if kept is None else pick(self.context_places, kept)
        context = self.context(tokens) + places
        queries = self.query + self.query_places + rearrange(self.gap(gaps), "b k d -> (b k) 1 d")
        hidden = torch.cat([repeat(context, "b n d -> (b k) n d", k=targets), queries], dim=1)
        hidden = run_blocks(self.blocks, hidden, self.checkpoint_every if self.training else 0)
        forecast = self.out(self.norm(hidden[:, context.shape[1] :]))
        return rearrange(forecast, "(b k) n d -> b k n d", b=batch)


class GapEmbedding(nn.Module):
    """A continuous embedding of seconds: Fourier features waves of 1/64 to 16 a second, then two layers."""

    angular: Tensor

    def __init__(self, dim: int, bands: int = 16) -> None:
        super().__init__()
        self.register_buffer("angular", 2 * math.pi * 2 ** torch.linspace(-6, 4, bands), persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * bands + 1, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, gaps: Tensor) -> Tensor:
        """gaps f32 [B, K] seconds -> [B, K, dim]."""
        angles = gaps[..., None] * self.angular
        return self.layers(torch.cat([gaps[..., None], angles.sin(), angles.cos()], dim=-1))


class MLPForecaster(nn.Module):
    """The published forecaster (arXiv 2606.14765): a two-layer MLP on the mean context token."""

    def __init__(self, config: ForecasterConfig, encoder_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(encoder_dim, config.dim), nn.GELU(), nn.Linear(config.dim, encoder_dim)
        )

    def forward(self, tokens: Tensor, gaps: Tensor, kept: Tensor | None = None) -> Tensor:
        forecast = self.layers(tokens.mean(dim=1))
        return repeat(forecast, "b d -> b k 1 d", k=gaps.shape[1])


def build_forecaster(
    config: ForecasterConfig, encoder_dim: int, steps: int, side: int, checkpoint_every: int = 0
) -> nn.Module:
    """steps, side: time steps and tokens along a side of the token grid; every n-th block is recomputed."""
    if config.kind is ForecasterKind.mlp:
        return MLPForecaster(config, encoder_dim)
    return TransformerForecaster(config, encoder_dim, steps, side, checkpoint_every)
