"""Floating-point operations of a training step, by arithmetic on the shapes of the model."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from mofore.config import PretrainConfig
from mofore.data.dataset import kept_tokens
from mofore.models.backbone import Attention
from mofore.models.encoder import VideoEncoder
from mofore.models.forecaster import TransformerForecaster
from mofore.models.objective import Pretraining, build_meta_pretraining

FORWARD_AND_BACKWARD = 3  # the backward of a product is two products: for its input, its weights
WITHOUT_INPUT = 2  # of the first layer: its input needs no gradient


class VideoFlops(NamedTuple):
    """FLOPs of matrix products, for one video of one training step."""

    teacher: float  # forward only
    student: float
    forecaster: float
    contrast: float  # projection head and similarities

    @property
    def total(self) -> float:
        return sum(self)


def flops_per_video(config: PretrainConfig) -> VideoFlops:
    """FLOPs of the matrix products of one training step, per video: forward and backward.

    A multiply-add is 2 FLOPs. As in the model FLOPs utilisation of PaLM (Chowdhery et al. 2022,
    arXiv 2204.02311, appendix B), attention counts, and what backward computes again does not: the
    blocks of gradient checkpointing, and the scores that flash attention does not keep.

    A sequence of l tokens costs, forward,

        2 l W          for Linear layers with W weights in all
        4 l^2 D        for each attention of width D: scores, and their product with the values

    Backward costs twice that. Not for the tubelet embedding: pixels need no gradient. The teacher
    has no backward. It encodes K targets per video, and the context too if the contrast is
    symmetric; so does the student, but only the tokens that it sees. The forecaster takes the
    tokens of the context and those to forecast, once per target.
    """
    model, targets = build_meta_pretraining(config.model()), config.data.targets
    ratios = (config.data.token_keep_ratio, config.teacher.token_keep_ratio)
    seen, known = (kept_tokens(ratio, config.tokens) or config.tokens for ratio in ratios)
    embed, blocks = _encoder_flops(model.teacher, known, config)
    teacher = (targets + model.symmetric) * (embed + blocks)
    clips = 1 + targets * model.symmetric  # that the student encodes
    embed, blocks = _encoder_flops(model.student, seen, config)
    student = clips * (WITHOUT_INPUT * embed + FORWARD_AND_BACKWARD * blocks)
    forecaster = _forecaster_flops(model.forecaster, seen, known, targets)
    return VideoFlops(teacher, student, forecaster, _contrast_flops(model, config, clips))


def linear_flops(modules: Iterable[nn.Module]) -> int:
    """Forward FLOPs of the Linear layers in these modules, for one token."""
    layers = [layer for module in modules for layer in module.modules()]
    return sum(2 * layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))


def _block_flops(blocks: nn.Module, length: int) -> int:
    """Forward FLOPs of transformer blocks for one sequence of `length` tokens."""
    attentions: list[Any] = [block.attn for block in blocks.children()]
    width = sum(attention.num_heads * attention.head_dim for attention in attentions)
    return length * linear_flops([blocks]) + 4 * length**2 * width


def _encoder_flops(
    encoder: VideoEncoder, tokens: int, config: PretrainConfig
) -> tuple[float, float]:
    """Forward FLOPs for one clip: (tubelet embedding, blocks)."""
    steps = 1
    if encoder.attention is Attention.per_frame:  # each time step is a sequence of its own
        steps = config.data.frames // encoder.tubelet_size
    length = tokens // steps + encoder.prefix_tokens.shape[1]
    return tokens * linear_flops([encoder.tubelet_embed]), steps * _block_flops(
        encoder.blocks, length
    )


def _forecaster_flops(forecaster: nn.Module, seen: int, forecast: int, targets: int) -> float:
    """Forward and backward FLOPs per video."""
    if not isinstance(forecaster, TransformerForecaster):
        return FORWARD_AND_BACKWARD * linear_flops([forecaster])  # the mean token of the context
    forward = (
        seen * linear_flops([forecaster.context_proj])
        + targets * _block_flops(forecaster.blocks, seen + forecast)
        + targets * forecast * linear_flops([forecaster.output_proj])
        + targets * linear_flops([forecaster.gap_embed])
    )
    features = targets * linear_flops([forecaster.gap_embed.layers[0]])  # need no gradient
    return FORWARD_AND_BACKWARD * forward - features


def _contrast_flops(model: Pretraining, config: PretrainConfig, clips: int) -> float:
    """Forward and backward FLOPs per video: a query against every key of the global batch."""
    head = 0 if model.projection_head is None else clips * linear_flops([model.projection_head])
    targets, dim = config.data.targets, model.student.dim
    keys = targets * config.global_batch
    if model.symmetric:
        keys += config.global_batch
    similarities = targets * 2 * dim * keys
    return FORWARD_AND_BACKWARD * head + WITHOUT_INPUT * similarities  # keys need no gradient
