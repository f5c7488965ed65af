"""Student, teacher and forecaster as one module, so that one engine shards and saves them together.

    batch -> teacher, no gradient -> Targets: tokens, keys
    batch, Targets, keys of the global batch -> student -> forecaster      -> forecasting loss
                                                       `-> projection head -> contrastive loss

Under autocast the networks run in bf16; latents, keys and losses are fp32.

The teacher encodes all micro-batches of a step first. Then the student forecasts one micro-batch
after the other against the keys of the whole global batch. So the contrastive loss has the same
negatives, and the step the same loss, however the global batch is split into ranks and
micro-batches.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn

from mofore.models.backbone import BackboneConfig
from mofore.models.encoder import VideoEncoder
from mofore.models.forecaster import ForecasterConfig, ForecasterKind, build_forecaster
from mofore.models.layers import keep_dtype_under_autocast
from mofore.models.losses import LossConfig, Query, forecasting_loss, info_nce, normalise
from mofore.types import Batch, Keys, Losses, Targets


@dataclass
class ModelConfig:
    """All that determines the shapes of the weights."""

    frames: int
    size: int
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)
    loss: LossConfig = field(default_factory=LossConfig)


class StepStart(NamedTuple):
    """What a step's first call returns."""

    losses: Losses  # of the first micro-batch
    targets: list[Targets]  # of every micro-batch
    keys: Keys  # of the global batch


Gather = Callable[[Keys], Keys]


class Pretraining(nn.Module):
    """Student, teacher, forecaster and, unless the forecast is the query, a projection head.

    `forward` has three call forms, because ZeRO-3 and autocast act only on calls of the module:

        model(batch) -> Targets
        model(batch, targets, keys, first_video) -> Losses
        model(micro_batches, gather=...) -> StepStart
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

    @overload
    def forward(self, batch: list[Batch], *, first_video: int, gather: Gather) -> StepStart: ...

    def forward(
        self,
        batch: Batch | list[Batch],
        targets: Targets | None = None,
        keys: Keys | None = None,
        first_video: int = 0,
        gather: Gather | None = None,
    ) -> Targets | Losses | StepStart:
        """The teacher's targets of a batch; given these, the losses of student and forecaster.

        keys: of the whole global batch, in its order. first_video: index of this batch's first
        video in it. Given all micro-batches of a step: the teacher's targets of all, and the losses
        of the first. gather: this rank's keys -> keys of the global batch.
        """
        if isinstance(batch, list):
            assert gather is not None
            return self.start_step(batch, first_video, gather)
        if targets is None:
            return self.encode_targets(batch)
        assert keys is not None
        return self.compute_losses(batch, targets, keys, first_video)

    def start_step(self, micro_batches: list[Batch], first_video: int, gather: Gather) -> StepStart:
        """Teacher on all micro-batches, student and forecaster on the first; as in `forward`.

        One call, because ZeRO-3 records the order of the modules in a call and fetches weights
        ahead only where the next call has the same order: alternating calls of teacher and student
        never do.
        """
        targets = [self.encode_targets(batch) for batch in micro_batches]
        keys = gather(Keys.concat([target.keys for target in targets]))
        losses = self.compute_losses(micro_batches[0], targets[0], keys, first_video)
        return StepStart(losses, targets, keys)

    @torch.no_grad()
    def encode_targets(self, batch: Batch) -> Targets:
        """Teacher latents of the targets, and the keys of the contrastive loss."""
        tokens = self.teacher_latents(batch.targets, batch.teacher_visible)
        contexts = tokens[:0]
        if self.symmetric:
            contexts = self.teacher_latents(batch.context.unsqueeze(1), batch.teacher_visible)
        return Targets(
            tokens, Keys(*(latents.mean(dim=2).flatten(0, 1) for latents in (tokens, contexts)))
        )

    @torch.no_grad()
    def teacher_latents(self, clips: Tensor, visible: Tensor | None = None) -> Tensor:
        """Clips u8 [B, K, C, T, H, W] -> latents f32 [B, K, N, D], or [B, K, 1, D] if pooled.

        visible: i64 [B, M'], the tokens of each of the K clips that the teacher sees, which are
        then the N; None or M' = 0: all.
        """
        visible = _none_if_all(visible)
        if visible is not None:
            visible = visible.repeat_interleave(clips.shape[1], dim=0)
        latents = self.teacher(clips.flatten(0, 1), visible).float()
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
        forecast_tokens = _none_if_all(batch.teacher_visible)
        forecast = self.forecaster(tokens[:videos], batch.gaps, visible, forecast_tokens).float()
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
        queries = self.projection_head(tokens.mean(dim=1, dtype=torch.float32)).float()
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
    head = nn.Sequential(
        nn.Linear(dim, 4 * dim), nn.LayerNorm(4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
    )
    keep_dtype_under_autocast(head)
    return head


def build_pretraining(config: ModelConfig, seed: int) -> Pretraining:
    """Fresh weights, equal for equal seeds; the global random state does not change."""
    # The weights are made on the CPU. Without devices=[] each rank would initialise every visible
    # GPU, and torch.manual_seed would seed them.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Pretraining(config)


def build_meta_pretraining(config: ModelConfig) -> Pretraining:
    """The model on the meta device: shapes and dtypes without memory or values.

    `backbone.pretrained_path` is not read; it does not change a shape.
    """
    backbone = replace(config.backbone, pretrained_path=None)
    with torch.device("meta"):
        return Pretraining(replace(config, backbone=backbone))
