"""The two terms of the objective, as functions of latents."""

from enum import Enum

import torch.nn.functional as F
from torch import Tensor


class Regression(Enum):
    mse = "mse"
    smooth_l1 = "smooth_l1"


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
    f32 [].
    """
    logits = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T / temperature
    if ignored is not None:
        logits = logits.masked_fill(ignored, float("-inf"))
    accuracy = (logits.argmax(dim=1) == positives).float().mean()
    return F.cross_entropy(logits, positives), accuracy
