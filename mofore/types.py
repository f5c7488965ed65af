"""What travels through pretraining, and the shape legend that every module uses.

B  videos in a micro-batch            T  frames in a clip            N  tokens of a clip (T/t * H/p * W/p)
K  targets of a context               C  colour channels (3)         D  width of the encoder
H, W  height and width in pixels      t, p  frames and pixels of a tubelet's side
u8, f32, i64  dtypes of tensors

A batch holds no label: training cannot read what it never receives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One micro-batch of one rank. A NamedTuple, because ZeRO-3's hooks walk tuples."""

    context: Tensor  # u8 [B, C, T, H, W]
    targets: Tensor  # u8 [B, K, C, T, H, W]
    gaps: Tensor  # f32 [B, K] seconds from the end of the context to the start of a target
    rows: Tensor  # i64 [B] rows of the manifest
    kept: Tensor  # i64 [B, M] tokens of the sample's clips that the student sees, ascending; M = 0: all


class Keys(NamedTuple):
    """Mean latents of clips, among which a query has to find its own."""

    targets: Tensor  # f32 [B * K, D]
    contexts: Tensor  # f32 [B, D]; [0, D] where no target asks for its context

    @staticmethod
    def joined(parts: Sequence["Keys"]) -> "Keys":
        """Of several micro-batches or ranks, in their order."""
        return Keys(*(torch.cat(kind) for kind in zip(*parts, strict=True)))


class Targets(NamedTuple):
    """What the teacher sees in a batch."""

    tokens: Tensor  # f32 [B, K, N, D] latents of the targets, to forecast
    keys: Keys


class Losses(NamedTuple):
    """Scalars (f32 []) of one micro-batch, each a mean over its B * K pairs of a context and a target."""

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
