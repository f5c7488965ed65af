"""The two terms of the objective, as functions of latents, and their configuration."""

from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from mofore.errors import UserError
from mofore.settings import setting


class Regression(Enum):
    mse = "mse"
    smooth_l1 = "smooth_l1"


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


def normalise(latents: Tensor) -> Tensor:
    """Layer norm without parameters over the last dimension (data2vec, Baevski et al. 2022).

    All targets then have one scale, so none dominates the regression.
    """
    return F.layer_norm(latents, latents.shape[-1:])


def forecasting_loss(forecast: Tensor, target: Tensor, regression: Regression) -> Tensor:
    """Mean over all elements, f32 [].

    forecast, target: f32 [B, K, M, D]; the target gets no gradient.
    """
    distance = F.mse_loss if regression is Regression.mse else F.smooth_l1_loss
    return distance(forecast, target.detach())


def info_nce(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    temperature: float,
    ignored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al. 2018) of cosine similarities.

    queries: f32 [Q, D] of this rank. keys: f32 [M, D] of the global batch. positives: i64 [Q], row
    of each query's positive key. ignored: bool [Q, M], keys that are neither positive nor negative
    of a query. Returns the loss and the fraction of queries whose nearest key is the positive, both
    f32 []. The similarities are fp32 under autocast too; bf16 would round them to 8 bits.
    """
    device = queries.device.type
    has_autocast = torch.amp.is_autocast_available(device)  # not the meta device
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    if ignored is not None:
        logits = logits.masked_fill(ignored, float("-inf"))
    accuracy = (logits.argmax(dim=1) == positives).float().mean()
    return F.cross_entropy(logits, positives), accuracy
