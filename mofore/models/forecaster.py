"""Forecasters: context tokens [B, N, D] and gaps in seconds [B, K] -> teacher latents [B, K, M, D].

The transformer forecasts every token of the target clip (M = N), the MLP only their mean (M = 1).
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.models.encoder import run_blocks
from mofore.models.layers import keep_dtype_under_autocast
from mofore.models.positions import sincos_1d, sincos_2d
from mofore.settings import setting


class ForecasterKind(Enum):
    transformer = "transformer"
    mlp = "mlp"  # as published (arXiv 2606.14765): two layers on the mean token, without the gap


@dataclass
class ForecasterConfig:
    """The forecaster, from context tokens to the latents of a target."""

    kind: ForecasterKind = setting(
        ForecasterKind.transformer, "Forecast all tokens (transformer) or their mean (mlp)."
    )
    dim: int = setting(192, "Width of the transformer, or hidden width of the MLP.")
    depth: int = setting(4, "Number of blocks of the transformer.")
    heads: int = setting(6, "Attention heads of the transformer.")

    def __post_init__(self) -> None:
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads:
            raise UserError(
                f"forecaster.dim={self.dim} must be a multiple of forecaster.heads={self.heads}, "
                f"and forecaster.depth={self.depth} at least 1."
            )


class TransformerForecaster(nn.Module):
    """Context tokens and one query per target token, through timm blocks.

    A query is the sum of a learned token, its position in the target clip and the embedded gap.
    Each target is forecast on its own, so a forecast does not depend on the other gaps that were
    drawn.
    """

    def __init__(
        self,
        config: ForecasterConfig,
        encoder_dim: int,
        steps: int,
        side: int,
        grad_checkpoint_every: int,
    ) -> None:
        super().__init__()
        self.grad_checkpoint_every = grad_checkpoint_every
        self.context_proj = nn.Linear(encoder_dim, config.dim)
        self.gap_embed = GapEmbedding(config.dim)
        # f32 [1, N, dim]. Time and space in one table: the token grid of a run is fixed.
        temporal, spatial = sincos_1d(steps, config.dim), sincos_2d(side, config.dim)
        positions = (temporal[:, None] + spatial[None]).flatten(0, 1)[None]
        self.context_positions = nn.Parameter(positions.clone())
        self.query_positions = nn.Parameter(positions.clone())
        self.query_token = nn.Parameter(torch.zeros(1, 1, config.dim).normal_(std=0.02))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, qkv_bias=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.output_proj = nn.Linear(config.dim, encoder_dim)
        keep_dtype_under_autocast(self)

    def forward(
        self,
        tokens: Tensor,
        gaps: Tensor,
        visible: Tensor | None = None,
        forecast_tokens: Tensor | None = None,
    ) -> Tensor:
        """Forecasts [B, K, N, D], or [B, K, M', D] of `forecast_tokens`.

        tokens: [B, N, D], or [B, M, D] with visible: i64 [B, M], their indices in the clip. gaps:
        f32 [B, K], seconds. forecast_tokens: i64 [B, M'], indices of the tokens to forecast in each
        target of a context; None: all.
        """
        batch, targets = gaps.shape
        context = self.context_proj(tokens)
        context = context + look_up(self.context_positions, visible).to(context.dtype)
        gap = rearrange(self.gap_embed(gaps), "b k d -> (b k) 1 d")
        queries = look_up(self.query_token + self.query_positions, forecast_tokens).to(gap.dtype)
        if forecast_tokens is not None:
            queries = queries.repeat_interleave(targets, dim=0)
        contexts = repeat(context, "b n d -> (b k) n d", k=targets)
        hidden = torch.cat([contexts, queries + gap], dim=1)
        hidden = run_blocks(self.blocks, hidden, self.grad_checkpoint_every if self.training else 0)
        forecast = self.output_proj(self.norm(hidden[:, context.shape[1] :]))
        return rearrange(forecast, "(b k) n d -> b k n d", b=batch)


def look_up(positions: Tensor, indices: Tensor | None) -> Tensor:
    """Positions [1, N, D] at indices i64 [B, M] -> [B, M, D]; None: all, [1, N, D]."""
    return positions if indices is None else F.embedding(indices, positions[0])


class GapEmbedding(nn.Module):
    """Seconds -> Fourier features of 1/64 to 16 Hz -> a two-layer MLP."""

    angular_frequencies: Tensor

    def __init__(self, dim: int, bands: int = 16) -> None:
        super().__init__()
        frequencies = 2 * math.pi * 2 ** torch.linspace(-6, 4, bands)
        self.register_buffer("angular_frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(2 * bands + 1, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, gaps: Tensor) -> Tensor:
        """gaps: f32 [B, K], seconds -> [B, K, dim]. The features are fp32 under autocast too."""
        angles = gaps[..., None] * self.angular_frequencies
        return self.layers(torch.cat([gaps[..., None], angles.sin(), angles.cos()], dim=-1))


class MLPForecaster(nn.Module):
    """A two-layer MLP on the mean context token, without the gap (arXiv 2606.14765)."""

    def __init__(self, config: ForecasterConfig, encoder_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(encoder_dim, config.dim), nn.GELU(), nn.Linear(config.dim, encoder_dim)
        )

    def forward(
        self,
        tokens: Tensor,
        gaps: Tensor,
        visible: Tensor | None = None,
        forecast_tokens: Tensor | None = None,
    ) -> Tensor:
        """tokens [B, N, D] and gaps f32 [B, K] -> forecasts [B, K, 1, D], equal for all gaps.

        It forecasts the mean of a target's tokens, whichever they are.
        """
        forecast = self.layers(tokens.mean(dim=1, dtype=torch.float32))
        return repeat(forecast, "b d -> b k 1 d", k=gaps.shape[1])


def build_forecaster(
    config: ForecasterConfig,
    encoder_dim: int,
    steps: int,
    side: int,
    grad_checkpoint_every: int = 0,
) -> nn.Module:
    """The forecaster for a token grid of steps x side x side; every n-th block is checkpointed."""
    if config.kind is ForecasterKind.mlp:
        return MLPForecaster(config, encoder_dim)
    return TransformerForecaster(config, encoder_dim, steps, side, grad_checkpoint_every)
