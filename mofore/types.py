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
    # i64 [B, M'], ascending: the tokens of each clip that the teacher sees; those of the targets
    # are forecast; M' = 0: all
    teacher_visible: Tensor


class ColourJitter(NamedTuple):
    """The drawn colour changes of clips, f32: what `mofore.data.views.apply_jitter` computes from.

    The dimensions "..." are [B, 1 + K] in a LoadedBatch, the context before the targets.
    """

    matrix: Tensor  # [..., 3, 3] on RGB; [..., 0, 3] if neither colour nor noise changes anything
    luma_weight: Tensor  # [...], weight of the clip's mean luma, which is then added
    noise_weight: Tensor  # [...], weight of the static noise image
    noise: Tensor  # [..., V], its grey levels on grids of several sizes; V = 0: no noise


class LoadedBatch(NamedTuple):
    """What the loader's workers make: a Batch whose clips have no colour jitter yet."""

    batch: Batch
    jitter: ColourJitter


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
