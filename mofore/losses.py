"""The two terms of the objective, as functions of latents."""

from enum import Enum

import torch.nn.functional as F
from torch import Tensor


class Regression(Enum):
    mse = "mse"
    smooth_l1 = "smooth_l1"


def normalise(latents: Tensor) -> Tensor:
    """Layer norm without parameters over the last dimension: no target wins by its scale (Baevski et al. 2022)."""
    return F.layer_norm(latents, latents.shape[-1:])


def forecasting_loss(forecast: Tensor, target: Tensor, regression: Regression) -> Tensor:
    """Mean over all elements. forecast, target: [B, K, M, D]; no gradient flows to the target."""
    distance = F.mse_loss if regression is Regression.mse else F.smooth_l1_loss
    return distance(forecast, target.detach())


def info_nce(
    queries: Tensor, keys: Tensor, positives: Tensor, temperature: float, ignored: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al. 2018): tell the own key from all others by cosine.

    queries: [Q, D] of this rank; keys: [M, D] of the whole global batch; positives: i64 [Q] rows of the own
    keys; ignored: bool [Q, M], keys that are neither the own nor another's. Returns the loss and the share of queries
    whose own key is nearest, both scalars.
    """
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    if ignored is not None:
        logits = logits.masked_fill(ignored, float("-inf"))
    accuracy = (logits.argmax(dim=1) == positives).float().mean()
    return F.cross_entropy(logits, positives), accuracy
