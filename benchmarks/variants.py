"""Forms of the objective that were tried and are not in the product: `Terms` put together, by name.

    batch -> views -> teacher: targets, and in reverse        student: tokens -> forecaster -> forecasts
                      -> the terms, each against those latents             \\-> head

What the product has (a context's mean latent finds its target's, and the other way round) is there too, so that one
thing at a time differs.
"""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.objectives import Forecasting, mlp
from mofore.config import PretrainConfig
from mofore.ema import update_teacher
from mofore.losses import info_nce, normalise
from mofore.models.encoder import VideoEncoder
from mofore.pretraining import build_head
from mofore.types import Batch


@dataclass(frozen=True)
class Terms:
    """Weights of terms, and how latents and views are made."""

    forecast: float = 1.0  # mean squared error of the forecast tokens
    pooled: float = 0.0  # InfoNCE: the mean forecast finds its target's mean
    tokens: float = 0.0  # each forecast token finds its own among all tokens of the batch's targets
    moments: float = (
        0.0  # each finds its own among those of the same place at other moments: targets and context
    )
    context: float = 0.0  # the context's mean latent, through a head, finds its target's
    arrow: float = 0.0  # the same latent is nearer to the target than to the target in reverse
    reverse: bool = False  # targets in reverse are negatives of all InfoNCE but `moments`
    now: bool = False  # so are the context's own tokens, of `tokens`
    both_ways: bool = False  # the target finds the context too (`context`)
    projector: bool = False  # `context` after projector and predictor, as MoCo v3
    centred: bool = False  # latents are less their place's mean in the batch
    change: bool = False  # what is forecast is the target's latents less the context's
    levels: bool = False  # latents are the mean of all blocks' normalised outputs (Baevski et al. 2022)
    apart: float = (
        1.0  # views: smallest share of the area that context and target show, each a square of its own
    )
    still: float = 0.0  # largest share of a still picture of another video (Wang et al. 2021)


class Seen(NamedTuple):
    """What the teacher sees."""

    latents: Tensor  # f32 [B, N, D] to forecast and to find
    raw: Tensor  # f32 [B, N, D] as they come out


class Variant(Forecasting):
    def __init__(self, config: PretrainConfig, terms: Terms) -> None:
        super().__init__(config)
        self.terms, self.temperature = terms, config.loss.temperature
        if terms.projector:
            self.project, self.predict = mlp(self.encoder.dim), mlp(self.encoder.dim)
            self.teacher_project = copy.deepcopy(self.project).requires_grad_(False)
        elif terms.context or terms.arrow:
            self.head = build_head(self.encoder.dim)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        terms, student, count = self.terms, self.whole.student, batch.targets.shape[1]
        context, target = self.look(batch.context), self.look(batch.targets.flatten(0, 1))
        turned, seen = terms.reverse or terms.arrow > 0, self.teach(target)
        none = Seen(seen.latents[:0], seen.raw[:0])
        backwards = self.teach(target.flip(2)) if turned else none
        now = self.teach(context) if terms.moments or terms.now or terms.change or terms.both_ways else none
        if terms.centred:
            mean = torch.stack(
                [part.latents.mean(dim=0) for part in (seen, backwards) if len(part.raw)]
            ).mean(dim=0)
            seen, backwards = (Seen(part.latents - mean, part.raw) for part in (seen, backwards))
        negatives = backwards.latents if terms.reverse else none.latents
        kept = batch.kept if batch.kept.shape[1] else None
        tokens = student(context, kept)
        total = tokens.new_zeros(())
        if terms.forecast or terms.pooled or terms.tokens or terms.moments:
            forecast = self.whole.forecaster(tokens, batch.gaps, kept).float().flatten(0, 1)
            base = now.latents.repeat_interleave(count, dim=0) if terms.change else 0.0
            total = total + terms.forecast * F.mse_loss(forecast, seen.latents - base)
            if terms.pooled:
                keys = torch.cat([seen.latents, negatives]).mean(dim=1)
                total = total + terms.pooled * self.find(forecast.mean(dim=1), keys)
            if terms.tokens:
                keys = torch.cat([seen.latents, negatives, now.latents if terms.now else none.latents])
                total = total + terms.tokens * self.find(forecast.flatten(0, 1), keys.flatten(0, 1))
            if terms.moments:
                total = total + terms.moments * self.in_time(forecast, seen.latents, now.latents, count)
        if terms.context or terms.arrow:
            total = total + self.from_context(tokens, seen, backwards)
            if terms.both_ways:
                past = self.teach(context.flip(2)) if turned else none
                total = total + self.from_context(student(target), now, past)
        return total

    def look(self, clips: Tensor) -> Tensor:
        """u8 or f32 [B, C, T, H, W]: as the views say."""
        terms = self.terms
        if terms.apart < 1:
            clips = squares(clips, terms.apart)
        if terms.still:
            clips, count = clips.float(), len(clips)
            others = clips[torch.randperm(count), :, torch.randint(clips.shape[2], (count,))].unsqueeze(2)
            clips = torch.lerp(clips, others.expand_as(clips), torch.rand(count, 1, 1, 1, 1) * terms.still)
        return clips

    @torch.no_grad()
    def teach(self, clips: Tensor) -> Seen:
        teacher = self.whole.teacher
        if self.terms.levels:
            return Seen(*all_levels(teacher, clips))
        raw = teacher(clips).float()
        return Seen(normalise(raw), raw)

    @torch.no_grad()
    def key(self, seen: Seen) -> Tensor:
        """f32 [B, D]."""
        return (
            self.teacher_project(seen.raw.mean(dim=1)) if self.terms.projector else seen.latents.mean(dim=1)
        )

    def find(self, queries: Tensor, keys: Tensor) -> Tensor:
        """InfoNCE of rows [Q, D] with the rows of the same number."""
        return info_nce(queries, keys, torch.arange(len(queries)), self.temperature)[0]

    def in_time(self, forecast: Tensor, latents: Tensor, now: Tensor, count: int) -> Tensor:
        moments = torch.cat([latents.unflatten(0, (-1, count)), now.unsqueeze(1)], dim=1)  # [B, K + 1, N, D]
        queries, keys = F.normalize(forecast.unflatten(0, (-1, count)), dim=-1), F.normalize(moments, dim=-1)
        logits = torch.einsum("bknd,bjnd->bknj", queries, keys) / self.temperature
        own = torch.arange(count).view(1, -1, 1).expand(logits.shape[:3])
        return F.cross_entropy(logits.flatten(0, 2), own.flatten())

    def from_context(self, tokens: Tensor, seen: Seen, backwards: Seen) -> Tensor:
        terms, query = self.terms, tokens.mean(dim=1)
        query = self.predict(self.project(query)) if terms.projector else self.head(query)
        joined = Seen(*(torch.cat(both) for both in zip(seen, backwards, strict=True)))
        keys, own = self.key(joined), len(seen.raw)  # one batch, for the batch norm of a projector
        loss = terms.context * self.find(query, keys if terms.reverse else keys[:own])
        if terms.arrow:
            nearer = F.cosine_similarity(query, keys[:own]) - F.cosine_similarity(query, keys[own:])
            loss = loss + terms.arrow * F.softplus(-nearer / self.temperature).mean()
        return loss

    def after(self, momentum: float) -> None:
        super().after(momentum)
        if self.terms.projector:
            update_teacher(self.teacher_project, self.project, momentum)


def squares(clips: Tensor, smallest: float) -> Tensor:
    """f32: of each clip a square of `smallest` to 1 of its area, from anywhere in it."""
    side = torch.empty(len(clips)).uniform_(smallest, 1).sqrt()
    look = torch.zeros(len(clips), 2, 3)
    look[:, 0, 0] = look[:, 1, 1] = side
    look[:, :, 2] = torch.empty(len(clips), 2).uniform_(-1, 1) * (1 - side)[:, None]
    frames = clips.transpose(1, 2).flatten(0, 1).float()
    grid = F.affine_grid(look, [len(clips), *frames.shape[1:]], align_corners=False)
    grid = grid.repeat_interleave(clips.shape[2], dim=0)
    seen = F.grid_sample(frames, grid, align_corners=False, padding_mode="border")
    return seen.unflatten(0, (len(clips), -1)).transpose(1, 2)


def all_levels(encoder: VideoEncoder, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of all blocks' outputs, each normalised, and the last as it is."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(normalise(out.float())))
             for block in encoder.blocks.children()]  # fmt: skip
    last = encoder(clips)
    for hook in hooks:
        hook.remove()
    return normalise(torch.stack([level[:, -last.shape[1] :] for level in seen]).mean(dim=0)), last.float()


BOTH = Terms(context=5, both_ways=True)  # the product's
VARIANTS = {
    "contrast of tokens": Terms(tokens=5),
    "contrast of tokens, still pictures": Terms(tokens=5, still=0.6),
    "contrast of centred tokens": Terms(tokens=5, centred=True),
    "contrast with other moments": Terms(pooled=2.5, moments=2.5),
    "tokens and moments": Terms(tokens=5, now=True),
    "tokens and the reverse": Terms(tokens=5, reverse=True),
    "contrast with the reverse": Terms(pooled=5, reverse=True),
    "contrast at the encoder": Terms(context=5),
    "the reverse at the encoder": Terms(context=5, reverse=True),
    "both ways": BOTH,
    "both ways: the reverse": replace(BOTH, reverse=True),
    "both ways: no forecast": replace(BOTH, forecast=0),
    "both ways: forecast the change": replace(BOTH, change=True),
    "both ways: targets of all levels": replace(BOTH, levels=True),
    "both ways: views apart": replace(BOTH, apart=0.6),
    "both ways: pictures of other videos": replace(BOTH, still=0.6),
    "both ways: other moments": replace(BOTH, moments=2.5),
    "both ways: projector": replace(BOTH, projector=True),
    "MoCo v3 and the reverse": Terms(forecast=0, context=1, reverse=True, both_ways=True, projector=True),
    "MoCo v3 and the reverse, still pictures": Terms(
        forecast=0, context=1, reverse=True, both_ways=True, projector=True, still=0.6
    ),
    "the arrow of time": Terms(arrow=5),
    "the arrow of time and contrast": Terms(context=1, arrow=5),
}
