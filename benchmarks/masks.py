"""Which places of a frame a masked objective sees and which are hidden from it, drawn for each clip of a batch."""

import math

import torch
from torch import Tensor


def scattered(batch: int, side: int, share: float) -> tuple[Tensor, Tensor]:
    """i64 [B, M] random places that are seen, `share` of all and at least one, and i64 [B, H] that are hidden."""
    order = torch.rand(batch, side**2).argsort(dim=1)
    seen = max(1, round(share * side**2))
    return order[:, :seen], order[:, seen:]


def blocks(batch: int, side: int, count: int, share: float) -> Tensor:
    """bool [B, side * side]: what `count` rectangles of `share` of the area, anywhere, hide; never all of it.

    As in the public code, a batch's rectangles have one size, drawn with an aspect of 0.75 to 1.5.
    """
    aspect = float(torch.empty(()).uniform_(0.75, 1.5))
    height, width = (min(side, max(1, round(side * math.sqrt(share * of)))) for of in (aspect, 1 / aspect))
    if height == width == side:
        height -= 1
    hides = torch.ones(batch, side * side, dtype=torch.bool)
    while (whole := hides.all(dim=1)).any():
        hides[whole] = rectangles(int(whole.sum()), side, count, height, width).flatten(1)
    return hides


def rectangles(batch: int, side: int, count: int, height: int, width: int) -> Tensor:
    """bool [B, side, side]: within any of `count` rectangles."""
    ranges = []
    for length in (height, width):
        first = torch.randint(side - length + 1, (batch, count, 1))
        along = torch.arange(side)
        ranges.append((along >= first) & (along < first + length))  # [B, count, side]
    return (ranges[0].unsqueeze(3) & ranges[1].unsqueeze(2)).any(dim=1)


def parted(hides: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, N] -> i64 [B, M] that are seen and i64 [B, H] that are hidden, as many as all of the batch have."""
    seen, hidden = int((~hides).sum(dim=1).min()), int(hides.sum(dim=1).min())
    order = (hides + 0.5 * torch.rand(hides.shape)).argsort(dim=1)  # what is seen comes first
    return order[:, :seen].sort(dim=1).values, order[:, -hidden:].sort(dim=1).values
