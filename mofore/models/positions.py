"""Tubelets and where they lie: pixels become rows of a matrix, and each row gets a place in space-time.

Positions are learned, factorised into space and time, and interpolated when a clip has another length or
size than the encoder was built for.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def to_tubelets(clips: Tensor, t: int, p: int) -> Tensor:
    """Cut clips [B, C, T, H, W] into tubelets [B, T/t, H/p * W/p, C * t * p * p].

    A reshape before a Linear, not a Conv3d with kernel = stride: the same sum, and many times faster where
    the convolution falls back to a slow kernel (pytorch issue 174051).
    """
    return rearrange(clips, "b c (nt t) (nh p) (nw q) -> b nt (nh nw) (c t p q)", t=t, p=p, q=p)


def sincos(length: int, dim: int) -> Tensor:
    """Sine and cosine of positions 0..length-1: f32 [length, dim] (Vaswani et al. 2017, section 3.5)."""
    half = dim // 2
    frequencies = 1e4 ** -(torch.arange(half, dtype=torch.float64) / max(half, 1))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    table = torch.zeros(length, dim)
    table[:, : 2 * half] = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    return table


def sincos_space(side: int, dim: int) -> Tensor:
    """Positions of a side x side grid, one half of the width for rows and one for columns: f32 [side^2, dim]."""
    rows, columns = sincos(side, dim // 2), sincos(side, dim - dim // 2)
    grid = [rows[:, None].expand(side, side, -1), columns[None].expand(side, side, -1)]
    return torch.cat(grid, dim=-1).reshape(side * side, dim)


def resize_space(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions [1, S*S, D] of a square grid for another grid (h, w): [1, h*w, D]; unchanged where it fits."""
    side = int(table.shape[1] ** 0.5)
    if grid == (side, side):
        return table
    image = rearrange(table, "1 (h w) d -> 1 d h w", h=side)
    image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return rearrange(image, "1 d h w -> 1 (h w) d")


def resize_time(table: Tensor, length: int) -> Tensor:
    """Positions [1, L, D] for another number of time steps: [1, length, D]; unchanged where it fits."""
    if table.shape[1] == length:
        return table
    return F.interpolate(table.transpose(1, 2), size=length, mode="linear").transpose(1, 2)
