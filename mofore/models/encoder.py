"""The video encoder: a timm ViT over tubelets.

u8 clips -> tubelets -> visible ones -> normalise -> Linear -> + positions -> timm blocks -> tokens

Under autocast the tokens are bf16 from the Linear on: positions and class tokens are cast to them.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mofore.errors import UserError
from mofore.models.backbone import (
    Attention,
    BackboneConfig,
    build_vit,
    check_tubelets,
    inflate_patch_embedding,
    init_positions,
    tubelet_error,
)
from mofore.models.positions import (
    resize_spatial_positions,
    resize_temporal_positions,
    to_tubelets,
)

# Added to the variance of a tubelet's normalised pixels, so that the noise of a flat one is not
# amplified.
MIN_TUBELET_VARIANCE = 0.01
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VideoEncoder(nn.Module):
    """Clips u8 [B, C, T, H, W] -> tokens [B, N, D], N = T/t * H/p * W/p.

    Tokens are ordered by time, row, column.

    config: the backbone. dim: D. frames, size: length and side of the clips that it is built for;
    other lengths and sizes (multiples of the tubelet) work too, with interpolated positions. fps:
    frames per second of those clips, or None if unknown.
    Raises UserError if timm cannot build the backbone, or `frames` and `size` do not divide into
    tubelets.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: BackboneConfig, frames: int, size: int, fps: float | None = None
    ) -> None:
        super().__init__()
        check_tubelets(config, frames, size, size)
        vit = build_vit(config, size)
        self.config, self.dim = config, vit.embed_dim
        self.frames, self.size, self.fps = frames, size, fps
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size
        self.patch_norm, self.attention = config.patch_norm, config.attention
        self.grad_checkpoint_every = config.grad_checkpoint_every
        self.tubelet_embed = inflate_patch_embedding(vit, config)
        self.prefix_tokens, self.spatial_positions, self.temporal_positions = init_positions(
            vit, config, frames // config.tubelet_size, size // config.patch_size
        )
        # per_frame attention does not use temporal positions.
        self.temporal_positions.requires_grad_(config.attention is Attention.joint)
        self.norm_pre, self.blocks, self.norm = vit.norm_pre, vit.blocks, vit.norm
        mean, std = (255 * torch.tensor(x).view(3, 1, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens [B, N, D] after the last norm, without class and register tokens.

        clips: u8 [B, C, T, H, W]. visible: i64 [B, M], indices of the tokens to encode (joint
        attention only); the others are dropped as pixels, and the result is [B, M, D].
        Raises UserError if the clips have another dtype or layout, or do not divide into tubelets.
        """
        assert visible is None or self.attention is Attention.joint
        check_clips(clips)
        tokens = self._embed_tubelets(clips, visible)
        # shape[0], not len(): torch.export would make len() a constant.
        prefix = self.prefix_tokens.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([prefix, tokens], dim=1)
        every = self.grad_checkpoint_every if self.training else 0
        tokens = self.norm(run_blocks(self.blocks, self.norm_pre(tokens), every))
        tokens = tokens[:, prefix.shape[1] :]
        return rearrange(tokens, "(b m) n d -> b (m n) d", b=clips.shape[0])

    def embed(self, clips: Tensor) -> Tensor:
        """Clips u8 [B, C, T, H, W] -> embeddings f32 [B, D]: the mean token."""
        return self(clips).float().mean(dim=1)

    def _embed_tubelets(self, clips: Tensor, visible: Tensor | None) -> Tensor:
        """Clips u8 [B, C, T, H, W] -> tokens with positions, as the blocks take them.

        Joint attention: [B, N or M, D]. per_frame: [B * T/t, H/p * W/p, D].
        """
        t, p = self.tubelet_size, self.patch_size
        frames, height, width = clips.shape[-3:]
        if frames % t or height % p or width % p:
            raise tubelet_error(t, p, frames, height, width)
        tubelets = to_tubelets(clips, t, p)
        grid = tubelets.shape[1:3]  # time steps, tubelets of a time step
        tubelets = tubelets.flatten(1, 2)
        if visible is not None:
            tubelets = gather_tokens(tubelets, visible)
        tokens = self.tubelet_embed(self._normalise(tubelets))
        spatial = resize_spatial_positions(self.spatial_positions, (height // p, width // p))
        temporal = resize_temporal_positions(self.temporal_positions, grid[0])
        if visible is not None:
            # Looked up in fp32, so that the gradients of a position are summed in fp32.
            spatial = F.embedding(visible % grid[1], spatial[0]).to(tokens.dtype)
            temporal = F.embedding(visible // grid[1], temporal[0]).to(tokens.dtype)
            return tokens + spatial + temporal
        tokens = tokens.unflatten(1, grid) + spatial.unsqueeze(1).to(tokens.dtype)
        if self.attention is Attention.per_frame:
            return tokens.flatten(0, 1)
        return (tokens + temporal.unsqueeze(2).to(tokens.dtype)).flatten(1, 2)

    def _normalise(self, tubelets: Tensor) -> Tensor:
        """Tubelets u8 [..., C * t * p * p] -> f32, by ImageNet's statistics; then patch_norm."""
        planes = tubelets.unflatten(-1, (len(self.mean), -1))  # [..., C, t * p * p]
        planes = (planes - self.mean.flatten(1)) / self.std.flatten(1)
        if self.patch_norm:
            # Per channel: normalising all together would amplify the hue of a flat tubelet.
            planes = F.layer_norm(planes, planes.shape[-1:], eps=MIN_TUBELET_VARIANCE)
        return planes.flatten(-2)


def check_clips(clips: Tensor) -> None:
    """Raise UserError, with the remedy, unless clips are u8 [B, 3, T, H, W].

    Other values would be normalised as if they were 0 to 255, and other layouts may broadcast.
    """
    if not isinstance(clips, Tensor):
        found, remedy = f"the type {type(clips).__name__}", "pass a tensor: torch.from_numpy(array)"
    elif clips.ndim != 5:
        found = f"{clips.ndim} dimensions {list(clips.shape)}"
        remedy = "add the batch dimension to one clip with clips.unsqueeze(0)"
    elif clips.shape[1] != 3:
        found = f"the shape {list(clips.shape)}"
        remedy = _layout_remedy(clips)
    elif clips.dtype != torch.uint8:
        found = f"the dtype {clips.dtype}"
        remedy = (
            "convert values from 0 to 1 with (255 * clips).round().to(torch.uint8), values from 0 "
            "to 255 with clips.to(torch.uint8), and do not normalise them: the encoder does"
        )
    else:
        return
    raise UserError(
        f"clips must be a uint8 tensor [B, 3, T, H, W], RGB; they have {found}: {remedy}."
    )


def _layout_remedy(clips: Tensor) -> str:
    if clips.shape[-1] == 3:
        return "move the channels from the last place with clips.movedim(-1, 1)"
    if clips.shape[2] == 3:
        return "swap time and channels with clips.transpose(1, 2)"
    if clips.shape[1] == 1:
        return "repeat a grey channel with clips.expand(-1, 3, -1, -1, -1)"
    if clips.shape[1] == 4:
        return "drop an alpha channel with clips[:, :3]"
    return "bring three channels, RGB, to the second place"


def run_blocks(blocks: nn.Module, tokens: Tensor, grad_checkpoint_every: int = 0) -> Tensor:
    """Apply the blocks in turn, with gradient checkpointing of every n-th one (0: of none).

    A checkpointed block keeps only its input and is recomputed in backward (Chen et al. 2016,
    arXiv 1604.06174).
    """
    every = grad_checkpoint_every if torch.is_grad_enabled() else 0
    for i, block in enumerate(blocks.children()):
        if every and i % every == 0:
            tokens = checkpoint(block, tokens, use_reentrant=False)
        else:
            tokens = block(tokens)
    return tokens


def gather_tokens(tokens: Tensor, visible: Tensor) -> Tensor:
    """The tokens at the given indices: [B or 1, N, D] and i64 [B, M] -> [B, M, D]."""
    return tokens.expand(len(visible), -1, -1).gather(
        1, visible.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    )
