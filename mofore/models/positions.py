"""Tubelets of a clip, and the position embeddings of their tokens.

Positions are learned, factorised into space and time, and interpolated if a clip has another length
or size than the encoder was built for.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def to_tubelets(clips: Tensor, tubelet_size: int, patch_size: int) -> Tensor:
    """Cut clips [B, C, T, H, W] into tubelets [B, T/t, H/p * W/p, C * t * p * p].

    A reshape before a Linear instead of a Conv3d with kernel = stride: the same sum, and many times
    faster where the convolution falls back to a slow kernel (pytorch issue 174051).
    """
    pattern = "b c (nt t) (nh p) (nw q) -> b nt (nh nw) (c t p q)"
    return rearrange(clips, pattern, t=tubelet_size, p=patch_size, q=patch_size)


def sincos_1d(length: int, dim: int) -> Tensor:
    """Positions 0 to length - 1, f32 [length, dim] (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequencies = 1e4 ** -(torch.arange(half, dtype=torch.float64) / max(half, 1))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    table = torch.zeros(length, dim)
    table[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    return table


def sincos_2d(side: int, dim: int) -> Tensor:
    """Positions of a square grid, f32 [side^2, dim]: half of dim for rows, half for columns."""
    rows, columns = sincos_1d(side, dim // 2), sincos_1d(side, dim - dim // 2)
    grid = [rows[:, None].expand(side, side, -1), columns[None].expand(side, side, -1)]
    return torch.cat(grid, dim=-1).reshape(side * side, dim)


def resize_spatial_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions [1, S*S, D] of a square grid -> [1, h*w, D] of `grid` (h, w); bicubic."""
    side = int(table.shape[1] ** 0.5)
    if grid == (side, side):
        return table
    image = rearrange(table, "1 (h w) d -> 1 d h w", h=side)
    image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return rearrange(image, "1 d h w -> 1 (h w) d")


def resize_temporal_positions(table: Tensor, length: int) -> Tensor:
    """Positions [1, L, D] -> [1, length, D]; linear."""
    if table.shape[1] == length:
        return table
    return F.interpolate(table.transpose(1, 2), size=length, mode="linear").transpose(1, 2)
