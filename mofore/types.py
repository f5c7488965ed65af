"""What travels through pretraining, and the shape legend that every module uses.

B  videos in a micro-batch            T  frames in a clip            N  tokens of a clip (T/t * H/p * W/p)
K  targets of a context               C  colour channels (3)         D  width of the encoder
H, W  height and width in pixels      t, p  frames and pixels of a tubelet's side
u8, f32, i64  dtypes of tensors

A batch holds no label: training cannot read what it never receives.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One micro-batch of one rank. A NamedTuple, because ZeRO-3's hooks walk tuples."""

    context: Tensor  # u8 [B, C, T, H, W]
    targets: Tensor  # u8 [B, K, C, T, H, W]
    gaps: Tensor  # f32 [B, K] seconds from the end of the context to the start of a target
    rows: Tensor  # i64 [B] rows of the manifest
    kept: Tensor  # i64 [B, M] tokens of the context that the student sees, ascending; M = 0: all


class Targets(NamedTuple):
    """What the teacher sees in the targets of a batch."""

    tokens: Tensor  # f32 [B, K, N, D] latents to forecast
    keys: Tensor  # f32 [B, K, D] mean latents, one a target clip
    reversed_keys: (
        Tensor  # f32 [B, K, D] of the targets played backwards; [B, 0, D] where loss.reverse is off
    )

    def all_keys(self) -> Tensor:
        """f32 [M, D], keys and then reversed ones, where this batch is the whole global batch."""
        return torch.cat([self.keys.flatten(0, 1), self.reversed_keys.flatten(0, 1)])


class Losses(NamedTuple):
    """Scalars (f32 []) of one micro-batch, each a mean over its B * K forecasts."""

    total: Tensor
    forecast: Tensor
    contrast: Tensor
    contrast_accuracy: Tensor


class Piece(NamedTuple):
    """A run of one tensor of the training state, as one rank holds it. `values` is a view: writing it changes the state."""

    name: str  # weights/NAME, exp_avg/NAME or exp_avg_sq/NAME
    start: int  # where the run begins in the flattened tensor
    values: Tensor  # f32 [n]
    shared: bool  # every rank holds this same run
