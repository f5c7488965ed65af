"""Forms of forecasting that the product does not have (or not yet): each changes one thing of `Forecasting`.

tokens      contrast each forecast token with every token of the batch's targets, not means of clips
moments     besides, tell the own target from other moments of the same video: the context's, the other targets'
change      forecast how the latents change from context to target, not what they will be
encoder     contrast the context's own mean latent, through a small head, with the target's; forecast besides
levels      targets are the mean of all blocks' normalised outputs (Baevski et al. 2022), not the last
backwards   besides, tell the target from its reverse, which differs from it in nothing but motion
views       context and target are cut from places of their own
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.objectives import Forecasting, mlp
from mofore.config import PretrainConfig
from mofore.losses import forecasting_loss, info_nce, normalise
from mofore.models.encoder import VideoEncoder
from mofore.types import Batch


class Variant(Forecasting):
    """The terms apart, to be put together otherwise. Shapes as in mofore.types."""

    def teach(self, clips: Tensor) -> Tensor:
        """Latents [B, K, N, D] of clips [B, K, C, T, H, W]."""
        return self.whole.latents(clips).tokens

    def forecast(self, batch: Batch) -> Tensor:
        return self.whole.forecast(batch.context, batch.gaps, batch.kept)

    def regression(self, forecast: Tensor, targets: Tensor) -> Tensor:
        return forecasting_loss(forecast, targets, self.whole.loss.regression)

    def contrast(self, queries: Tensor, keys: Tensor) -> Tensor:
        """InfoNCE of rows [Q, D] with the rows of the same number."""
        return info_nce(queries, keys, torch.arange(len(queries)), self.whole.loss.temperature)[0]

    def now(self, batch: Batch) -> Tensor:
        """Latents [B, 1, N, D] of the contexts."""
        return self.teach(batch.context.unsqueeze(1))

    def backwards(self, batch: Batch) -> Tensor:
        """Latents [B, K, N, D] of the targets in reverse."""
        return self.teach(batch.targets.flip(3))

    def wanted(self, batch: Batch) -> Tensor:
        """What is forecast."""
        return self.teach(batch.targets)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        targets, forecast = self.wanted(batch), self.forecast(batch)
        return self.regression(forecast, targets) + self.whole.loss.contrast * self.apart(
            forecast, targets, batch
        )

    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """What keeps latents apart: as in the product."""
        return self.contrast(forecast.mean(dim=2).flatten(0, 1), targets.mean(dim=2).flatten(0, 1))


class Tokens(Variant):
    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return self.contrast(forecast.flatten(0, 2), targets.flatten(0, 2))


class Moments(Variant):
    """Half of the contrast is with other videos, half with other moments of the same, token by token."""

    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        moments = torch.cat([targets, self.now(batch)], 1)
        return 0.5 * super().apart(forecast, targets, batch) + 0.5 * self.in_time(forecast, moments)

    def in_time(self, forecast: Tensor, moments: Tensor) -> Tensor:
        """forecast [B, K, N, D]; moments [B, K + 1, N, D], the last of them the context's own."""
        queries, keys = F.normalize(forecast, dim=-1), F.normalize(moments, dim=-1)
        logits = torch.einsum("bknd,bjnd->bknj", queries, keys) / self.whole.loss.temperature
        own = torch.arange(forecast.shape[1]).view(1, -1, 1).expand(logits.shape[:3])
        return F.cross_entropy(logits.flatten(0, 2), own.flatten())


class TokensMoments(Variant):
    """Both: all tokens of the batch and those of the context are what a forecast token is told from."""

    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        keys = torch.cat([targets.flatten(0, 2), self.now(batch).flatten(0, 2)])
        return self.contrast(forecast.flatten(0, 2), keys)


class Change(Variant):
    def wanted(self, batch: Batch) -> Tensor:
        return self.teach(batch.targets) - self.now(batch)


class AtEncoder(Variant):
    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.head = mlp(self.encoder.dim)

    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        queries = self.head(self.whole.student.embed(batch.context))
        return self.contrast(queries, targets[:, 0].mean(dim=1))


class Backwards(Variant):
    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        keys = torch.cat([targets, self.backwards(batch)]).mean(dim=2).flatten(0, 1)
        return self.contrast(forecast.mean(dim=2).flatten(0, 1), keys)


class BackwardsTokens(Variant):
    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        return self.contrast(
            forecast.flatten(0, 2), torch.cat([targets, self.backwards(batch)]).flatten(0, 2)
        )


class BackwardsAtEncoder(AtEncoder):
    def apart(self, forecast: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        keys = torch.cat([targets, self.backwards(batch)])[:, 0].mean(dim=1)
        return self.contrast(self.head(self.whole.student.embed(batch.context)), keys)


class Views(Variant):
    """Squares of 60 to 100% of the view's area, from anywhere in it."""

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        clips = batch.targets.flatten(0, 1)
        side = torch.empty(len(clips)).uniform_(0.6, 1).sqrt()
        look = torch.zeros(len(clips), 2, 3)
        look[:, 0, 0] = look[:, 1, 1] = side
        look[:, :, 2] = torch.empty(len(clips), 2).uniform_(-1, 1) * (1 - side)[:, None]
        frames = clips.transpose(1, 2).flatten(0, 1).float()
        grid = F.affine_grid(look, [len(clips), *frames.shape[1:]], align_corners=False)
        grid = grid.repeat_interleave(clips.shape[2], dim=0)
        seen = F.grid_sample(frames, grid, align_corners=False, padding_mode="border")
        seen = seen.unflatten(0, (len(clips), -1)).transpose(1, 2).unflatten(0, batch.targets.shape[:2])
        return super().loss(batch._replace(targets=seen.round().to(torch.uint8)), labels)


class Levels(Variant):
    def teach(self, clips: Tensor) -> Tensor:
        with torch.no_grad():
            return all_levels(self.whole.teacher, clips.flatten(0, 1)).unflatten(0, clips.shape[:2])


def all_levels(encoder: VideoEncoder, clips: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: seen.append(normalise(out.float())))
             for block in encoder.blocks.children()]  # fmt: skip
    last = encoder(clips)
    for hook in hooks:
        hook.remove()
    return normalise(torch.stack([level[:, -last.shape[1] :] for level in seen]).mean(dim=0))


VARIANTS = {
    "contrast of tokens": Tokens, "contrast with other moments": Moments, "tokens and moments": TokensMoments,
    "forecast the change": Change, "contrast at the encoder": AtEncoder, "targets of all levels": Levels,
    "contrast with the reverse": Backwards, "tokens and the reverse": BackwardsTokens,
    "the reverse at the encoder": BackwardsAtEncoder, "views apart": Views,
}  # fmt: skip
