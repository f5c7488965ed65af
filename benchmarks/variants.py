"""Variants of MoFore's objective that were tried and are not in the library.

`VariantConfig()` is the library's default objective; each variant changes one setting.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.objectives import Forecasting, mlp
from mofore.config import PretrainConfig
from mofore.models.ema import update_teacher
from mofore.models.encoder import VideoEncoder
from mofore.models.losses import info_nce, normalise
from mofore.models.objective import build_projection_head
from mofore.types import Batch

# Of InfoNCE in each direction; the library's loss.contrastive_weight (10) is of their mean.
CONTRASTIVE_WEIGHT = 5.0


@dataclass(frozen=True)
class VariantConfig:
    """Weights of the losses, and how targets, queries and views are made."""

    # Weight of the mean squared error of the forecast tokens.
    forecasting_weight: float = 1.0
    # Weight of InfoNCE between each forecast token and the latents of the same position in the
    # targets and the context of its video.
    temporal_negatives_weight: float = 0.0
    # Queries and keys of InfoNCE through the projector and predictor of MoCo v3.
    moco_heads: bool = False
    # Forecast the target's latents minus the context's.
    residual_targets: bool = False
    # Targets and keys: mean of the normalised outputs of all blocks (Baevski et al. 2022).
    multi_block_targets: bool = False
    # Crop a separate square from each clip, of at least this share of the view.
    min_square_area: float = 1.0
    # Largest weight of a static frame of another video, blended over each clip (Wang et al. 2021).
    static_frame: float = 0.0


class Variant(Forecasting):
    """MoFore's objective with one setting changed. Its own InfoNCE replaces the library's."""

    def __init__(self, config: PretrainConfig, variant: VariantConfig) -> None:
        super().__init__(config)
        self.variant, self.temperature = variant, config.loss.temperature
        if variant.moco_heads:
            self.project, self.predict = mlp(self.encoder.dim), mlp(self.encoder.dim)
            self.teacher_project = copy.deepcopy(self.project).requires_grad_(False)
        else:
            self.projection_head = build_projection_head(self.encoder.dim)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        student = self.model.student
        context, target = self.augment(batch.context), self.augment(batch.targets.flatten(0, 1))
        target_latents, target_raw = self.teacher_latents(target)
        context_latents, context_raw = self.teacher_latents(context)
        visible = batch.visible if batch.visible.shape[1] else None
        tokens = student(context, visible)
        total = tokens.new_zeros(())
        if self.variant.forecasting_weight:
            forecast = self.model.forecaster(tokens, batch.gaps, visible).float()
            total = total + self.forecast_losses(forecast, target_latents, context_latents)
        to_target = self.info_nce(self.queries(tokens), self.keys(target_latents, target_raw))
        total = total + CONTRASTIVE_WEIGHT * to_target
        query = self.queries(student(target))
        to_context = self.info_nce(query, self.keys(context_latents, context_raw))
        return total + CONTRASTIVE_WEIGHT * to_context

    def forecast_losses(self, forecast: Tensor, target: Tensor, context: Tensor) -> Tensor:
        """Scalar. forecast: [B, K, N, D]; target: latents [B * K, N, D]; context: [B, N, D]."""
        variant, count = self.variant, forecast.shape[1]
        base = context.repeat_interleave(count, dim=0) if variant.residual_targets else 0.0
        error = F.mse_loss(forecast.flatten(0, 1), target - base)
        total = variant.forecasting_weight * error
        if not variant.temporal_negatives_weight:
            return total
        moments = torch.cat([target.unflatten(0, (-1, count)), context.unsqueeze(1)], dim=1)
        queries, keys = F.normalize(forecast, dim=-1), F.normalize(moments, dim=-1)
        logits = torch.einsum("bknd,bjnd->bknj", queries, keys) / self.temperature
        positives = torch.arange(count).view(1, -1, 1).expand(logits.shape[:3])
        infonce = F.cross_entropy(logits.flatten(0, 2), positives.flatten())
        return total + variant.temporal_negatives_weight * infonce

    def augment(self, clips: Tensor) -> Tensor:
        """u8 [B, C, T, H, W] -> the views of this variant, u8."""
        if self.variant.min_square_area < 1:
            clips = random_squares(clips, self.variant.min_square_area)
        if self.variant.static_frame:
            clips, count = clips.float(), len(clips)
            videos, frames = torch.randperm(count), torch.randint(clips.shape[2], (count,))
            images = clips[videos, :, frames].unsqueeze(2).expand_as(clips)
            weight = torch.rand(count, 1, 1, 1, 1) * self.variant.static_frame
            clips = torch.lerp(clips, images, weight)
        return clips.round().to(torch.uint8) if clips.is_floating_point() else clips

    @torch.no_grad()
    def teacher_latents(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and the teacher's plain output, both f32 [B, N, D]."""
        teacher = self.model.teacher
        if self.variant.multi_block_targets:
            return mean_of_blocks(teacher, clips)
        raw = teacher(clips).float()
        return normalise(raw), raw

    def queries(self, tokens: Tensor) -> Tensor:
        """f32 [B, D] of student tokens [B, N, D]."""
        pooled = tokens.mean(dim=1)
        if self.variant.moco_heads:
            return self.predict(self.project(pooled))
        return self.projection_head(pooled)

    @torch.no_grad()
    def keys(self, latents: Tensor, raw: Tensor) -> Tensor:
        """f32 [B, D] of what `teacher_latents` returns."""
        if self.variant.moco_heads:
            return self.teacher_project(raw.mean(dim=1))
        return latents.mean(dim=1)

    def info_nce(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scalar; the positive of each query f32 [B, D] is the key in the same row."""
        return info_nce(queries, keys, torch.arange(len(queries)), self.temperature)[0]

    def update_ema(self, momentum: float) -> None:
        super().update_ema(momentum)
        if self.variant.moco_heads:
            update_teacher(self.teacher_project, self.project, torch.tensor(1 - momentum))


def random_squares(clips: Tensor, min_area: float) -> Tensor:
    """f32 [B, C, T, H, W]: a random square of each clip, `min_area` to 1 of its area, resized."""
    side = torch.empty(len(clips)).uniform_(min_area, 1).sqrt()
    theta = torch.zeros(len(clips), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = torch.empty(len(clips), 2).uniform_(-1, 1) * (1 - side)[:, None]
    frames = clips.transpose(1, 2).flatten(0, 1).float()
    grid = F.affine_grid(theta, [len(clips), *frames.shape[1:]], align_corners=False)
    grid = grid.repeat_interleave(clips.shape[2], dim=0)
    squares = F.grid_sample(frames, grid, align_corners=False, padding_mode="border")
    return squares.unflatten(0, (len(clips), -1)).transpose(1, 2)


def mean_of_blocks(encoder: VideoEncoder, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of the normalised outputs of all blocks, and the encoder's output; f32 [B, N, D]."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: outputs.append(normalise(out.float())))
        for block in encoder.blocks.children()
    ]
    last = encoder(clips)
    for hook in hooks:
        hook.remove()
    tokens = [output[:, -last.shape[1] :] for output in outputs]
    return normalise(torch.stack(tokens).mean(dim=0)), last.float()


VARIANTS = {
    "MoFore: no forecasting loss": VariantConfig(forecasting_weight=0),
    "MoFore: residual targets": VariantConfig(residual_targets=True),
    "MoFore: targets of all blocks": VariantConfig(multi_block_targets=True),
    "MoFore: independent crops": VariantConfig(min_square_area=0.6),
    "MoFore: static frames of other videos": VariantConfig(static_frame=0.6),
    "MoFore: temporal negatives": VariantConfig(temporal_negatives_weight=2.5),
    "MoFore: MoCo v3 heads": VariantConfig(moco_heads=True),
}
