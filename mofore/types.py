"""The tensors that pretraining passes around, and the shape legend that every module uses.

B  videos in a micro-batch            T  frames of a clip            N  tokens of a clip (T/t * H/p
                                                                     * W/p)
K  targets per context                C  colour channels (3)         M  visible tokens of a clip (of
                                                                     N)
H, W  height and width in pixels      t, p  frames and side of a tubelet      D  width of the
                                                                              encoder
u8, f32, i64  dtypes of tensors

A batch has no labels: training cannot use what it never receives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One micro-batch of one rank. A NamedTuple, because ZeRO-3's hooks traverse tuples."""

    context: Tensor  # u8 [B, C, T, H, W]
    targets: Tensor  # u8 [B, K, C, T, H, W]
    gaps: Tensor  # f32 [B, K], seconds from the end of the context to the start of a target
    rows: Tensor  # i64 [B], rows of the manifest
    # i64 [B, M], ascending: the tokens of the context and of each target that the student sees; M =
    # 0: all
    visible: Tensor


class Keys(NamedTuple):
    """Mean teacher latents of clips: the keys of the contrastive loss."""

    targets: Tensor  # f32 [B * K, D]
    contexts: Tensor  # f32 [B, D]; [0, D] if the contrast is not symmetric

    @staticmethod
    def concat(parts: Sequence["Keys"]) -> "Keys":
        """The keys of several micro-batches or ranks, in their order."""
        return Keys(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class Targets(NamedTuple):
    """What the teacher computes from a batch."""

    tokens: Tensor  # f32 [B, K, N, D], latents of the targets, to forecast; [B, K, 1, D] if pooled
    keys: Keys


class Losses(NamedTuple):
    """Scalars f32 [] of one micro-batch, means over its B * K pairs of a context and a target."""

    total: Tensor
    forecast: Tensor
    contrastive: Tensor
    contrastive_accuracy: Tensor


class Shard(NamedTuple):
    """One rank's slice of a flattened tensor of the training state.

    `values` is a view: writing to it changes the state.
    """

    name: str  # weights/NAME, exp_avg/NAME or exp_avg_sq/NAME
    start: int  # index of the slice in the flattened tensor
    values: Tensor  # f32 [n]
    replicated: bool  # whether every rank holds this same slice
