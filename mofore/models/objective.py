"""Student, teacher and forecaster as one module, so that one engine shards and saves them together.

    batch -> teacher, no gradient -> Targets: tokens, keys
    batch, Targets, keys of the global batch -> student -> forecaster      -> forecasting loss
                                                       `-> projection head -> contrastive loss

The teacher encodes all micro-batches of a step first. Then the student forecasts one micro-batch
after the other against the keys of the whole global batch. So the contrastive loss has the same
negatives, and the step the same loss, however the global batch is split into ranks and
micro-batches.
"""

import copy
from dataclasses import dataclass, field
from enum import Enum
from typing import overload

import torch
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.models.backbone import BackboneConfig
from mofore.models.encoder import VideoEncoder
from mofore.models.forecaster import ForecasterConfig, ForecasterKind, build_forecaster
from mofore.models.losses import Regression, forecasting_loss, info_nce, normalise
from mofore.settings import setting
from mofore.types import Batch, Keys, Losses, Targets


class Query(Enum):
    """The queries and keys of the contrastive loss."""

    # Student context -> teacher target, and student target -> teacher context, through a projection
    # head (the symmetric loss of Chen et al. 2021).
    symmetric = "symmetric"
    context = "context"  # student context -> teacher target only: half the student's compute
    forecast = "forecast"  # mean forecast -> teacher target, without a head, as published


@dataclass
class LossConfig:
    """total = forecasting loss + contrastive_weight * InfoNCE."""

    regression: Regression = setting(Regression.mse, "Distance of forecast and target latents.")
    normalise_targets: bool = setting(True, "Layer-normalise the teacher's latents.")
    contrastive_weight: float = setting(
        10.0, "Weight of InfoNCE; 0: off, so that only the EMA prevents collapse."
    )
    query: Query = setting(
        Query.symmetric,
        "InfoNCE queries: context and target (symmetric), the context, or the forecast.",
    )
    temperature: float = setting(0.1, "Temperature of InfoNCE.")

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.contrastive_weight < 0:
            raise UserError(
                f"loss.temperature={self.temperature} must be above 0 and "
                f"loss.contrastive_weight={self.contrastive_weight} at least 0."
            )


@dataclass
class ModelConfig:
    """All that determines the shapes of the weights."""

    frames: int
    size: int
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class Pretraining(nn.Module):
    """Student, teacher, forecaster and, unless the forecast is the query, a projection head.

    `forward` has two call forms, because ZeRO-3 and autocast act only on calls of the module:

        model(batch) -> Targets
        model(batch, targets, keys, first_video) -> Losses
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        loss, backbone = config.loss, config.backbone
        self.loss_config = loss
        self.symmetric = loss.query is Query.symmetric and loss.contrastive_weight > 0
        self.pool_latents = config.forecaster.kind is ForecasterKind.mlp
        self.student = VideoEncoder(backbone, config.frames, config.size)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.forecaster = build_forecaster(
            config.forecaster,
            self.student.dim,
            config.frames // backbone.tubelet_size,
            config.size // backbone.patch_size,
            backbone.grad_checkpoint_every,
        )
        self.projection_head = (
            None if loss.query is Query.forecast else build_projection_head(self.student.dim)
        )
        self.train()

    def train(self, mode: bool = True) -> "Pretraining":
        """Set the mode; the teacher always stays in eval mode, without stochastic depth."""
        super().train(mode)
        self.teacher.eval()
        return self

    @overload
    def forward(self, batch: Batch) -> Targets: ...

    @overload
    def forward(
        self, batch: Batch, targets: Targets, keys: Keys, first_video: int = 0
    ) -> Losses: ...

    def forward(
        self,
        batch: Batch,
        targets: Targets | None = None,
        keys: Keys | None = None,
        first_video: int = 0,
    ) -> Targets | Losses:
        """The teacher's targets of a batch; given these, the losses of student and forecaster.

        keys: of the whole global batch, in its order. first_video: index of this batch's first
        video in it.
        """
        if targets is None:
            return self.encode_targets(batch)
        assert keys is not None
        return self.compute_losses(batch, targets, keys, first_video)

    @torch.no_grad()
    def encode_targets(self, batch: Batch) -> Targets:
        """Teacher latents of the targets, and the keys of the contrastive loss."""
        tokens = self.teacher_latents(batch.targets)
        contexts = tokens[:0]
        if self.symmetric:
            contexts = self.teacher_latents(batch.context.unsqueeze(1))
        return Targets(
            tokens, Keys(*(latents.mean(dim=2).flatten(0, 1) for latents in (tokens, contexts)))
        )

    @torch.no_grad()
    def teacher_latents(self, clips: Tensor) -> Tensor:
        """Clips u8 [B, K, C, T, H, W] -> latents f32 [B, K, N, D], or [B, K, 1, D] if pooled."""
        latents = self.teacher(clips.flatten(0, 1)).float()
        if self.pool_latents:
            latents = latents.mean(dim=1, keepdim=True)
        if self.loss_config.normalise_targets:
            latents = normalise(latents)
        return latents.unflatten(0, clips.shape[:2])

    def compute_losses(
        self, batch: Batch, targets: Targets, keys: Keys, first_video: int
    ) -> Losses:
        """The losses of one micro-batch; arguments as in `forward`."""
        videos, count = batch.gaps.shape
        visible = student_visible = _none_if_all(batch.visible)
        clips = batch.context
        if self.symmetric:  # contexts, then targets, in one forward pass of the student
            clips = torch.cat([clips, batch.targets.flatten(0, 1)])
            if visible is not None:
                student_visible = torch.cat([visible, visible.repeat_interleave(count, dim=0)])
        tokens = self.student(clips, student_visible)
        forecast = self.forecaster(tokens[:videos], batch.gaps, visible).float()
        contrastive, accuracy = self.contrastive_loss(tokens, forecast, keys, first_video)
        regression = forecasting_loss(forecast, targets.tokens, self.loss_config.regression)
        total = regression + self.loss_config.contrastive_weight * contrastive
        return Losses(total, regression.detach(), contrastive.detach(), accuracy)

    def contrastive_loss(
        self, tokens: Tensor, forecast: Tensor, keys: Keys, first_video: int
    ) -> tuple[Tensor, Tensor]:
        """InfoNCE and its accuracy, f32 [] each.

        tokens: student tokens [B, N, D] of the contexts; if symmetric [B + B * K, N, D], contexts,
        then targets. forecast: f32 [B, K, M, D]. keys, first_video: as in `forward`.
        """
        temperature = self.loss_config.temperature
        videos, count = forecast.shape[:2]
        # Rows of this batch's targets in the keys of the global batch.
        positives = torch.arange(
            first_video * count, (first_video + videos) * count, device=forecast.device
        )
        if self.projection_head is None:
            queries = forecast.mean(dim=2).flatten(0, 1)
            return info_nce(queries, keys.targets, positives, temperature)
        queries = self.projection_head(tokens.mean(dim=1)).float()
        # Other targets of the same context are neither positives nor negatives.
        rows = torch.arange(len(keys.targets), device=positives.device)
        same_context = rows // count == positives[:, None] // count
        siblings = same_context & (rows != positives[:, None])
        context_queries = queries[:videos].repeat_interleave(count, dim=0)
        loss, accuracy = info_nce(context_queries, keys.targets, positives, temperature, siblings)
        if self.symmetric:
            backward_loss, backward_accuracy = info_nce(
                queries[videos:], keys.contexts, positives // count, temperature
            )
            loss, accuracy = (loss + backward_loss) / 2, (accuracy + backward_accuracy) / 2
        return loss, accuracy

    def forecast(self, context: Tensor, gaps: Tensor, visible: Tensor | None = None) -> Tensor:
        """The student's forecasts f32 [B, K, N, D], or [B, K, 1, D] if pooled.

        context: u8 [B, C, T, H, W]. gaps: f32 [B, K], seconds. visible: i64 [B, M], the context's
        tokens that the student sees; None or M = 0: all.
        """
        visible = _none_if_all(visible)
        return self.forecaster(self.student(context, visible), gaps, visible).float()


def _none_if_all(visible: Tensor | None) -> Tensor | None:
    """`visible` as the encoder takes it: None instead of M = 0 if all tokens are visible."""
    return visible if visible is not None and visible.shape[1] else None


def build_projection_head(dim: int) -> nn.Module:
    """Mean student token -> mean teacher latent of another clip: [B, dim] -> [B, dim].

    Layer norm, because the statistics of batch norm would depend on the micro-batch.
    """
    return nn.Sequential(
        nn.Linear(dim, 4 * dim), nn.LayerNorm(4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
    )


def build_pretraining(config: ModelConfig, seed: int) -> Pretraining:
    """Fresh weights, equal for equal seeds; the global random state does not change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Pretraining(config)
