"""The backbone's configuration, and what a video encoder takes from a timm VisionTransformer.

timm builds the transformer by name: blocks, norms, class and register tokens, initialisation,
stochastic depth, loading of 2-D weights. This module inflates the patch embedding to tubelets and
makes the positions.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer, load_checkpoint
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from mofore.errors import UserError
from mofore.models.layers import keep_dtype_under_autocast
from mofore.models.positions import sincos_1d, sincos_2d
from mofore.settings import setting


class Attention(Enum):
    """Which tokens attend to each other."""

    joint = "joint"  # all tokens of the clip (joint space-time attention)
    per_frame = "per_frame"  # tokens of one time step: a 2-D encoder applied frame by frame


@dataclass
class BackboneConfig:
    """The encoder: a timm VisionTransformer over tubelets. `null` keeps timm's own value."""

    name: str = setting("vit_tiny_patch16_224", "Name of a timm VisionTransformer.")
    embed_dim: int | None = setting(None, "Width of the tokens; null: timm's value for the name.")
    depth: int | None = setting(None, "Number of blocks; null: timm's value for the name.")
    num_heads: int | None = setting(None, "Attention heads; null: timm's value for the name.")
    reg_tokens: int | None = setting(
        None, "Register tokens (Darcet et al. 2024); null: timm's value for the name."
    )
    patch_size: int = setting(16, "Height and width of a tubelet in pixels.")
    tubelet_size: int = setting(2, "Length of a tubelet in frames.")
    attention: Attention = setting(
        Attention.joint, "Attention over the whole clip (joint) or within each time step."
    )
    patch_norm: bool = setting(
        False, "Normalise the pixels of each tubelet (Kumar et al. 2023, Dual PatchNorm)."
    )
    drop_path: float = setting(0.0, "Stochastic depth rate of the student; 0: off.")
    grad_checkpoint_every: int = setting(
        0, "Recompute every n-th block of encoder and forecaster in backward; 1: all, 0: none."
    )
    pretrained_path: str | None = setting(
        None, "Local 2-D weights (.safetensors or .pth) to inflate; null: train from scratch."
    )

    def __post_init__(self) -> None:
        if min(self.patch_size, self.tubelet_size) < 1 or self.grad_checkpoint_every < 0:
            raise UserError(
                f"backbone.patch_size={self.patch_size}, backbone.tubelet_size="
                f"{self.tubelet_size} must be at least 1 and backbone.grad_checkpoint_every="
                f"{self.grad_checkpoint_every} at least 0."
            )
        if not 0 <= self.drop_path < 1:
            raise UserError(
                f"backbone.drop_path={self.drop_path} is a probability: give 0 <= drop_path < 1."
            )


def check_tubelets(config: BackboneConfig, frames: int, height: int, width: int) -> None:
    """Raise UserError if clips of this shape do not divide into tubelets."""
    if frames % config.tubelet_size or height % config.patch_size or width % config.patch_size:
        raise tubelet_error(config.tubelet_size, config.patch_size, frames, height, width)


def tubelet_error(
    tubelet_size: int, patch_size: int, frames: int, height: int, width: int
) -> UserError:
    return UserError(
        f"a clip of {frames} frames of {height}x{width} does not divide into tubelets of "
        f"{tubelet_size} frames of {patch_size}x{patch_size}: make data.frames a multiple of "
        "backbone.tubelet_size and data.size a multiple of backbone.patch_size."
    )


def build_vit(config: BackboneConfig, size: int) -> VisionTransformer:
    """A timm model for images of size x size, with local 2-D weights if `pretrained_path` is set.

    Nothing is downloaded. Raises UserError if timm has no such VisionTransformer, cannot build it
    with these sizes, or the weights do not fit.
    """
    if not timm.is_model(config.name):
        similar = timm.list_models(f"*{config.name.split('_patch')[0]}*")[:5]
        raise UserError(
            f"backbone.name={config.name}: timm has no such model "
            f"(it has {', '.join(similar) or 'vit_tiny_patch16_224'}, ...)."
        )
    given = {
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "reg_tokens": config.reg_tokens,
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    try:
        vit = timm.create_model(
            config.name,
            num_classes=0,
            global_pool="",
            img_size=size,
            patch_size=config.patch_size,
            drop_path_rate=config.drop_path,
            **options,
        )
    except (RuntimeError, TypeError, AssertionError, KeyError) as error:
        raise UserError(
            f"backbone.name={config.name}: timm cannot build it as a VisionTransformer with "
            f"{options}: {error}. embed_dim must be a multiple of num_heads."
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"backbone.name={config.name} is a {type(vit).__name__}; MoFore needs a timm "
            "VisionTransformer (vit_tiny/small/base/large/huge/giant..., or vit_*_reg* with "
            "registers)."
        )
    if config.pretrained_path is not None:
        _load_weights(vit, config.pretrained_path)
    keep_dtype_under_autocast(vit)
    return vit


def _load_weights(vit: VisionTransformer, path: str) -> None:
    """Load local 2-D weights, resampled to the patch size and grid; none may be missing."""
    if not Path(path).is_file():
        raise UserError(f"backbone.pretrained_path: no file {path}.")
    try:
        result = load_checkpoint(
            vit, path, strict=False, filter_fn=checkpoint_filter_fn, weights_only=True
        )
    except Exception as error:  # each file format has its own errors
        reason = " ".join(str(error).split()[:40])
        raise UserError(
            f"backbone.pretrained_path: {path} does not load into this backbone: {reason}"
        ) from error
    if result is not None and result.missing_keys:
        raise UserError(
            f"backbone.pretrained_path: {path} has no {', '.join(result.missing_keys[:3])}: "
            "it holds the weights of another model than this backbone."
        )


def inflate_patch_embedding(vit: VisionTransformer, config: BackboneConfig) -> nn.Linear:
    """The 2-D patch convolution as a Linear over tubelets: f32 [D, C * t * p * p].

    Each frame of the tubelet gets 1/t of the weights (Carreira & Zisserman 2017, section 2.4.1), so
    on a static clip the Linear computes what the convolution computes on one frame. Without 2-D
    weights the Linear is initialised at random with the convolution's standard deviation / sqrt(t).
    """
    conv, frames = vit.patch_embed.proj, config.tubelet_size
    kernel = conv.weight.detach()  # [D, C, p, p]
    linear = nn.Linear(kernel[0].numel() * frames, kernel.shape[0], bias=conv.bias is not None)
    with torch.no_grad():
        inflated = kernel.unsqueeze(2).expand(-1, -1, frames, -1, -1) / frames
        linear.weight.copy_(inflated.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
        # From scratch, the frames' weights may differ. Meta tensors have no values to measure.
        if config.pretrained_path is None and not kernel.is_meta:
            nn.init.trunc_normal_(linear.weight, std=float(kernel.std()) / frames**0.5)
    return linear


def init_positions(
    vit: VisionTransformer, config: BackboneConfig, steps: int, side: int
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Prefix tokens [1, R, D], spatial [1, side^2, D] and temporal positions [1, steps, D].

    Spatial positions come from the 2-D weights if there are any. Temporal positions are then zero,
    so that a static clip gives the tokens of its frame.
    """
    tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = torch.cat([*tokens, torch.zeros(1, 0, vit.embed_dim)], dim=1).detach()
    spatial, temporal = sincos_2d(side, vit.embed_dim)[None], sincos_1d(steps, vit.embed_dim)[None]
    if config.pretrained_path is not None and vit.pos_embed is not None:
        table = vit.pos_embed.detach()
        with_position = table.shape[1] - side * side  # prefix tokens with a position of their own
        prefix = prefix.clone()
        prefix[:, :with_position] += table[:, :with_position]
        spatial, temporal = table[:, with_position:].clone(), torch.zeros_like(temporal)
    return nn.Parameter(prefix.clone()), nn.Parameter(spatial), nn.Parameter(temporal)
