"""Spatial masks of the masked objectives: which patches of a frame are visible, for each clip."""

import math

import torch
from torch import Tensor


def random_masks(batch: int, side: int, visible_ratio: float) -> tuple[Tensor, Tensor]:
    """Random patches of a grid of side x side, drawn for each clip.

    Returns visible i64 [B, M], `visible_ratio` of all patches and at least one, and masked
    i64 [B, H].
    """
    order = torch.rand(batch, side**2).argsort(dim=1)
    visible = max(1, round(visible_ratio * side**2))
    return order[:, :visible], order[:, visible:]


def block_masks(batch: int, side: int, count: int, area: float) -> Tensor:
    """bool [B, side * side]: masked by any of `count` rectangles of `area` of the frame.

    As in V-JEPA's public code, the rectangles of a batch share one size, drawn with an aspect
    ratio of 0.75 to 1.5. At least one patch stays visible.
    """
    aspect = float(torch.empty(()).uniform_(0.75, 1.5))
    height, width = (
        min(side, max(1, round(side * math.sqrt(area * ratio)))) for ratio in (aspect, 1 / aspect)
    )
    if height == width == side:
        height -= 1
    masked = torch.ones(batch, side * side, dtype=torch.bool)
    while (full := masked.all(dim=1)).any():
        masked[full] = _rectangles(int(full.sum()), side, count, height, width).flatten(1)
    return masked


def _rectangles(batch: int, side: int, count: int, height: int, width: int) -> Tensor:
    """bool [B, side, side]: inside any of `count` rectangles."""
    spans = []
    for length in (height, width):
        start = torch.randint(side - length + 1, (batch, count, 1))
        index = torch.arange(side)
        spans.append((index >= start) & (index < start + length))  # [B, count, side]
    return (spans[0].unsqueeze(3) & spans[1].unsqueeze(2)).any(dim=1)


def mask_indices(masked: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, N] -> indices of visible patches i64 [B, M] and of masked patches i64 [B, H].

    M and H are the smallest numbers of the batch, so that the indices stack.
    """
    visible, hidden = int((~masked).sum(dim=1).min()), int(masked.sum(dim=1).min())
    order = (masked + 0.5 * torch.rand(masked.shape)).argsort(dim=1)  # visible patches first
    return order[:, :visible].sort(dim=1).values, order[:, -hidden:].sort(dim=1).values
