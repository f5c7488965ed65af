"""Student, teacher and forecaster as one module, so that one engine shards and saves them together.

    batch -> teach (teacher, no gradient) -> Targets: tokens, keys
    batch, Targets, keys of the global batch -> student -> forecaster -> Losses
                                                    `-> head

The teacher looks first, at every micro-batch of a step; then the student forecasts one micro-batch after the
other against the keys of the whole global batch. So the contrast has the same negatives, and the step the
same loss, however the global batch is cut into ranks and micro-batches.
"""

import copy
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.losses import Regression, forecasting_loss, info_nce, normalise
from mofore.models.encoder import BackboneConfig, VideoEncoder
from mofore.models.forecaster import ForecasterConfig, ForecasterKind, build_forecaster
from mofore.types import Batch, Keys, Losses, Targets


class Query(Enum):
    """What has to find its own clip's mean latent among those of other videos."""

    # the student's mean latent, through a head, so that the contrast forms what is used after training:
    both = "both"  # of the context its target, and of the target its context (the symmetric loss of Chen et al. 2021)
    context = "context"  # of the context its target: half the student's work
    forecast = "forecast"  # the mean of the forecast, as published


@dataclass
class LossConfig:
    """total = forecasting loss + contrast * InfoNCE.

    In [] the rows of `python -m benchmarks.learning --experiments` where another value was tried.
    """

    regression: Regression = Regression.mse
    normalise_targets: bool = True  # layer-normalise the teacher's latents [raw targets]
    contrast: float = 10.0  # weight of InfoNCE; at 0 the EMA alone prevents collapse [contrast 1, 20]
    query: Query = Query.both  # of the contrast [contexts alone, the forecast is told apart]
    temperature: float = 0.1  # of InfoNCE [temperature 0.05, 0.2]

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.contrast < 0:
            raise UserError(
                f"loss.temperature={self.temperature} must be above 0 and loss.contrast={self.contrast} not below."
            )


@dataclass
class ModelConfig:
    """What decides the shapes of the weights: all that is needed to build them again."""

    frames: int
    size: int
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class Pretraining(nn.Module):
    """`forward(batch)` -> Targets; `forward(batch, targets, keys, first)` -> Losses.

    One entry for both, because ZeRO-3 and autocast act on calls of the engine's module alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.loss = config.loss
        self.both = config.loss.query is Query.both and config.loss.contrast > 0
        self.pooled = config.forecaster.kind is ForecasterKind.mlp
        self.student = VideoEncoder(config.backbone, config.frames, config.size)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        steps, side = config.frames // config.backbone.tubelet, config.size // config.backbone.patch
        self.forecaster = build_forecaster(
            config.forecaster, self.student.dim, steps, side, config.backbone.checkpoint_every
        )
        self.head = None if config.loss.query is Query.forecast else build_head(self.student.dim)
        self.train()

    def train(self, mode: bool = True) -> "Pretraining":
        """The teacher never drops a path."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self, batch: Batch, targets: Targets | None = None, keys: Keys | None = None, first: int = 0
    ) -> Targets | Losses:
        """keys: of the whole global batch, of which contexts first.. are this batch's own."""
        if targets is None:
            return self.teach(batch)
        assert keys is not None
        (videos, count), kept, clips = batch.gaps.shape, _given(batch.kept), batch.context
        if self.both:  # context and targets in one call of the student
            clips = torch.cat([clips, batch.targets.flatten(0, 1)])
            seen = kept if kept is None else torch.cat([kept, kept.repeat_interleave(count, dim=0)])
        else:
            seen = kept
        tokens = self.student(clips, seen)
        forecast = self.forecaster(tokens[:videos], batch.gaps, kept).float()
        contrast, accuracy = self.contrast(tokens, forecast, keys, first)
        regression = forecasting_loss(forecast, targets.tokens, self.loss.regression)
        total = regression + self.loss.contrast * contrast
        return Losses(total, regression.detach(), contrast.detach(), accuracy)

    def contrast(self, tokens: Tensor, forecast: Tensor, keys: Keys, first: int) -> tuple[Tensor, Tensor]:
        """InfoNCE and its accuracy, of student tokens [B, N, D], of the targets [B * K, N, D] after them where both are
        asked, and forecasts [B, K, M, D].
        """
        videos, count = forecast.shape[:2]
        own = torch.arange(first * count, (first + videos) * count, device=forecast.device)  # rows of targets
        if self.head is None:
            return info_nce(forecast.mean(dim=2).flatten(0, 1), keys.targets, own, self.loss.temperature)
        queries = self.head(tokens.mean(dim=1)).float()
        rows = torch.arange(len(keys.targets), device=own.device)
        siblings = (rows // count == own[:, None] // count) & (rows != own[:, None])  # targets of one context
        ahead = queries[:videos].repeat_interleave(count, dim=0)
        loss, accuracy = info_nce(ahead, keys.targets, own, self.loss.temperature, siblings)
        if self.both:
            back = info_nce(queries[videos:], keys.contexts, own // count, self.loss.temperature)
            loss, accuracy = (loss + back[0]) / 2, (accuracy + back[1]) / 2
        return loss, accuracy

    @torch.no_grad()
    def teach(self, batch: Batch) -> Targets:
        """What the teacher sees in the targets, and in the contexts where these have to be found."""
        tokens = self.latents(batch.targets)
        contexts = self.latents(batch.context.unsqueeze(1)) if self.both else tokens[:0]
        return Targets(tokens, Keys(*(seen.mean(dim=2).flatten(0, 1) for seen in (tokens, contexts))))

    @torch.no_grad()
    def latents(self, clips: Tensor) -> Tensor:
        """The teacher's latents f32 [B, K, N, D] (pooled: [B, K, 1, D]) of clips u8 [B, K, C, T, H, W], as they are
        forecast.
        """
        tokens = self.teacher(clips.flatten(0, 1)).float()
        if self.pooled:
            tokens = tokens.mean(dim=1, keepdim=True)
        if self.loss.normalise_targets:
            tokens = normalise(tokens)
        return tokens.unflatten(0, clips.shape[:2])

    def forecast(self, context: Tensor, gaps: Tensor, kept: Tensor | None = None) -> Tensor:
        """The student's forecasts f32 [B, K, N, D] (pooled: [B, K, 1, D]) from contexts u8 [B, C, T, H, W] and gaps
        f32 [B, K]. `kept`: i64 [B, M], the tokens of the context that it sees; None or M = 0: all.
        """
        kept = _given(kept)
        return self.forecaster(self.student(context, kept), gaps, kept).float()


def _given(kept: Tensor | None) -> Tensor | None:
    """None where all tokens are seen."""
    return kept if kept is not None and kept.shape[1] else None


def build_head(dim: int) -> nn.Module:
    """From a clip's mean latent to that of another. Layer norm, since batch norm would see micro-batches."""
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.LayerNorm(4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


def build_pretraining(config: ModelConfig, seed: int) -> Pretraining:
    """Fresh weights, the same for the same seed; the caller's random state is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Pretraining(config)
