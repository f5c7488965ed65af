"""A timm ViT over tubelets: u8 clips -> normalise -> tubelets -> Linear -> + positions -> timm blocks -> tokens.

timm builds the transformer (any `VisionTransformer` by name: blocks, norms, class and register tokens,
initialisation, stochastic depth, loading of 2-D weights); what is ours is the step from pixels to tokens.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models import VisionTransformer, load_checkpoint
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mofore.errors import UserError
from mofore.models.positions import resize_space, resize_time, sincos, sincos_space, to_tubelets

FLAT = 0.01  # variance of a tubelet (of normalised pixels) below which it counts as flat, not as noise to amplify
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Attention(Enum):
    """What a token attends to."""

    joint = "joint"  # every token of the clip (space-time)
    per_frame = "per_frame"  # the tokens of its own time step: a 2-D encoder, frame by frame


@dataclass
class BackboneConfig:
    """Which encoder. `name` is a timm VisionTransformer; the fields below None keep timm's own value."""

    name: str = "vit_tiny_patch16_224"
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    registers: int | None = None  # extra tokens without a place (Darcet et al. 2024)
    patch: int = 16  # pixels of a tubelet's side
    tubelet: int = 2  # frames of a tubelet
    attention: Attention = Attention.joint
    patch_norm: bool = False  # normalise the pixels of each tubelet (Kumar et al. 2023, Dual PatchNorm)
    drop_path: float = 0.0  # stochastic depth of the student
    checkpoint_every: int = 0  # recompute every n-th block (the forecaster's too) in backward; 1 all, 0 none
    pretrained_path: str | None = None  # local 2-D weights (.safetensors or .pth), inflated to tubelets

    def __post_init__(self) -> None:
        if min(self.patch, self.tubelet) < 1 or self.checkpoint_every < 0:
            raise UserError(
                f"backbone.patch={self.patch}, backbone.tubelet={self.tubelet} must be at least 1 and "
                f"backbone.checkpoint_every={self.checkpoint_every} at least 0."
            )
        if not 0 <= self.drop_path < 1:
            raise UserError(f"backbone.drop_path={self.drop_path} is a probability: give 0 <= drop_path < 1.")


class VideoEncoder(nn.Module):
    """Clips u8 [B, C, T, H, W] -> tokens [B, N, D], N = T/t * H/p * W/p, ordered by time, row, column.

    `frames` and `size` are those of training; other lengths and sizes (multiples of the tubelet) work, with
    interpolated positions.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, frames: int, size: int) -> None:
        super().__init__()
        check_tubelets(config, frames, size, size)
        vit = _timm_vit(config, size)
        self.t, self.p = config.tubelet, config.patch
        self.patch_norm = config.patch_norm
        self.dim, self.attention = vit.embed_dim, config.attention
        self.checkpoint_every = config.checkpoint_every
        self.embedding = _inflate(vit, config)
        self.prefix, self.space, self.time = _positions(
            vit, config, frames // config.tubelet, size // config.patch
        )
        self.time.requires_grad_(config.attention is Attention.joint)  # else it has no part in anything
        self.norm_pre, self.blocks, self.norm = vit.norm_pre, vit.blocks, vit.norm
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1, 1), persistent=False)

    def forward(self, clips: Tensor, kept: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D] after the last norm; class and register tokens are dropped.

        With `kept` (i64 [B, M], joint attention only) the other tokens are left out before the first block, and
        [B, M, D] comes out.
        Raises UserError where the clip's sides are no multiples of the tubelet's.
        """
        frames, height, width = clips.shape[-3:]
        if frames % self.t or height % self.p or width % self.p:
            raise UserError(_misfit(self.t, self.p, frames, height, width))
        assert kept is None or self.attention is Attention.joint
        tubelets = to_tubelets((clips - self.mean) / self.std, self.t, self.p)
        if self.patch_norm:
            tubelets = normalise_tubelets(tubelets, clips.shape[1])
        grid = (height // self.p, width // self.p)
        tokens = self.embedding(tubelets) + resize_space(self.space, grid).unsqueeze(1)
        steps = tokens.shape[1]
        if self.attention is Attention.per_frame:
            tokens = rearrange(tokens, "b nt n d -> (b nt) n d")
        else:
            tokens = tokens + resize_time(self.time, steps).unsqueeze(2)
            tokens = rearrange(tokens, "b nt n d -> b (nt n) d")
            tokens = tokens if kept is None else pick(tokens, kept)
        tokens = torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], dim=1)
        every = self.checkpoint_every if self.training else 0
        tokens = self.norm(run_blocks(self.blocks, self.norm_pre(tokens), every))[:, self.prefix.shape[1] :]
        return rearrange(tokens, "(b m) n d -> b (m n) d", b=len(clips))

    def embed(self, clips: Tensor) -> Tensor:
        """The mean token: f32 [B, D]."""
        return self(clips).float().mean(dim=1)


def run_blocks(blocks: nn.Module, tokens: Tensor, checkpoint_every: int = 0) -> Tensor:
    """Through one block after the other; every n-th is computed again in backward, its activations not kept.

    Of a recomputed block its input alone stays (Chen et al. 2016, arXiv 1604.06174).
    """
    recompute = checkpoint_every if torch.is_grad_enabled() else 0
    for i, block in enumerate(blocks.children()):
        if recompute and i % recompute == 0:
            tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = block(tokens)
    return tokens


def pick(tokens: Tensor, kept: Tensor) -> Tensor:
    """[B or 1, N, D] and i64 [B, M] -> [B, M, D]: of each row, the tokens named."""
    return tokens.expand(len(kept), -1, -1).gather(1, kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def normalise_tubelets(tubelets: Tensor, channels: int) -> Tensor:
    """Zero mean and unit variance of each colour channel of each tubelet [..., C * t * p * p].

    By channel, or the hue of a flat tubelet would be blown up to the size of an edge.
    """
    planes = tubelets.unflatten(-1, (channels, -1))
    return F.layer_norm(planes, planes.shape[-1:], eps=FLAT).flatten(-2)


def check_tubelets(config: BackboneConfig, frames: int, height: int, width: int) -> None:
    """Raises UserError where clips of this size do not divide into tubelets."""
    if frames % config.tubelet or height % config.patch or width % config.patch:
        raise UserError(_misfit(config.tubelet, config.patch, frames, height, width))


def _misfit(t: int, p: int, frames: int, height: int, width: int) -> str:
    return (
        f"a clip of {frames} frames of {height}x{width} does not divide into tubelets of {t} frames of {p}x{p}: "
        "make data.frames a multiple of backbone.tubelet and data.size a multiple of backbone.patch."
    )


def _timm_vit(config: BackboneConfig, size: int) -> VisionTransformer:
    """timm's own model, with local 2-D weights where the config names some; nothing is downloaded."""
    chosen: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
    }
    chosen |= {"reg_tokens": config.registers}
    options = {key: value for key, value in chosen.items() if value is not None}
    if not timm.is_model(config.name):
        close = (
            ", ".join(timm.list_models(f"*{config.name.split('_patch')[0]}*")[:5]) or "vit_tiny_patch16_224"
        )
        raise UserError(f"backbone.name={config.name}: timm has no such model (it has {close}, ...).")
    try:
        vit = timm.create_model(
            config.name, num_classes=0, global_pool="", img_size=size, patch_size=config.patch,
            drop_path_rate=config.drop_path, **options,
        )  # fmt: skip
    except (RuntimeError, TypeError, AssertionError, KeyError) as reason:
        raise UserError(
            f"backbone.name={config.name}: timm cannot build it as a VisionTransformer with {options}: {reason}. "
            "A width (embed_dim) must divide by its heads (num_heads)."
        ) from reason
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"backbone.name={config.name} is a {type(vit).__name__}; MoFore takes timm's VisionTransformer "
            "(vit_tiny/small/base/large/huge/giant..., with registers: vit_*_reg*)."
        )
    if config.pretrained_path is not None:
        _load_weights(vit, config.pretrained_path)
    return vit


def _load_weights(vit: VisionTransformer, path: str) -> None:
    """Local 2-D weights, resampled to the patch and the grid; all of the transformer must be in the file."""
    if not Path(path).is_file():
        raise UserError(f"backbone.pretrained_path: no file {path}.")
    try:
        fit = load_checkpoint(vit, path, strict=False, filter_fn=checkpoint_filter_fn, weights_only=True)
    except Exception as reason:  # what is wrong with a file shows in as many ways as there are formats
        first = " ".join(str(reason).split()[:40])
        raise UserError(
            f"backbone.pretrained_path: {path} does not load into this backbone: {first}"
        ) from reason
    if fit is not None and fit.missing_keys:
        raise UserError(
            f"backbone.pretrained_path: {path} has no {', '.join(fit.missing_keys[:3])}: "
            "it holds the weights of another model than this backbone."
        )


def _inflate(vit: VisionTransformer, config: BackboneConfig) -> nn.Linear:
    """A Linear over tubelets that sees, in a still clip, what the 2-D patch convolution sees in a frame.

    Each frame of the tubelet gets 1/t of the weights (Carreira & Zisserman 2017, section 2.4.1).
    """
    t = config.tubelet
    kernel = vit.patch_embed.proj.weight.detach()  # [D, C, p, p]
    linear = nn.Linear(kernel[0].numel() * t, kernel.shape[0], bias=vit.patch_embed.proj.bias is not None)
    with torch.no_grad():
        linear.weight.copy_((kernel.unsqueeze(2).expand(-1, -1, t, -1, -1) / t).flatten(1))
        if vit.patch_embed.proj.bias is not None:
            linear.bias.copy_(vit.patch_embed.proj.bias)
        if config.pretrained_path is None:  # from scratch, frames need not start out equal
            nn.init.trunc_normal_(linear.weight, std=float(kernel.std()) / t**0.5)
    return linear


def _positions(
    vit: VisionTransformer, config: BackboneConfig, steps: int, side: int
) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Prefix tokens [1, R, D], space [1, side^2, D] and time [1, steps, D].

    2-D weights bring their own space, and a time of zero: a still clip then looks like its frame.
    """
    tokens = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
    prefix = torch.cat([*tokens, torch.zeros(1, 0, vit.embed_dim)], dim=1).detach()
    space, time = sincos_space(side, vit.embed_dim)[None], sincos(steps, vit.embed_dim)[None]
    if config.pretrained_path is not None and vit.pos_embed is not None:
        table = vit.pos_embed.detach()
        placed = table.shape[1] - side * side  # class tokens that have a position of their own
        prefix = prefix.clone()
        prefix[:, :placed] += table[:, :placed]
        space, time = table[:, placed:].clone(), torch.zeros_like(time)
    return nn.Parameter(prefix.clone()), nn.Parameter(space), nn.Parameter(time)
