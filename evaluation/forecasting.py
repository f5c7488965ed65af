"""Test videos through the frozen forecaster: how far its forecast is from what the teacher sees later.

    context -> student -> forecaster -> forecast      |
    context -> teacher -> "the future looks like now" |-> mean squared error on the teacher's latents of the target
    mean latent of all test targets                   |

An error means little alone. An encoder whose latents never change is forecast perfectly by persistence; and where
latents change so much that persistence is worse than their mean, a forecast that knows nothing of its context beats it:
in units of the variance, with a correlation of r between now and then, persistence's error is 2 - 2 r, the mean's 1.
So the forecast is set against both.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from evaluation.features import Features, ForecastErrors
from evaluation.intervals import Bootstrap, Result, missing, ratio
from mofore.config import EvaluateConfig
from mofore.data.loader import batches_of
from mofore.pretraining import Pretraining
from mofore.types import Batch

METRICS = {"forecast_mse": "forecast", "persistence_mse": "persistence", "mean_latent_mse": "mean_latent"}
NO_FORECASTER = "a baseline without a forecaster"


@torch.inference_mode()
def forecast_errors(
    models: Mapping[str, Pretraining],
    batches: DataLoader | Sequence[Batch],
    rows: int,
    targets: int,
    device: torch.device,
) -> dict[str, ForecastErrors]:
    """Errors of every model on the same clips; each batch is decoded once for all of them.

    rows: of the manifest; targets: K. Returns f32 [rows, K] arrays, nan where no batch had the row.
    """
    empty = np.full((rows, targets), np.nan, dtype=np.float32)
    forecast = {name: empty.copy() for name in models}
    persistence = {name: empty.copy() for name in models}
    square = {name: empty.copy() for name in models}
    latent: dict[str, dict[int, np.ndarray]] = {
        name: {} for name in models
    }  # row -> f32 [K, D], mean over tokens
    for batch in tqdm(batches_of(batches), desc="forecasts", total=len(batches), leave=False):
        index = batch.rows.numpy()
        batch = Batch(*(part.to(device, non_blocking=True) for part in batch))
        for name, model in models.items():
            truth = model.latents(batch.targets)
            now = model.latents(batch.context.unsqueeze(1))
            forecast[name][index] = _mse(model.forecast(batch.context, batch.gaps), truth)
            persistence[name][index] = _mse(now.expand_as(truth), truth)
            square[name][index] = _mse(torch.zeros_like(truth), truth)
            latent[name].update(zip(index.tolist(), truth.mean(dim=2).cpu().numpy(), strict=True))
    return {
        name: ForecastErrors(forecast[name], persistence[name], _mean_latent_mse(square[name], latent[name]))
        for name in models
    }


def _mse(forecast: Tensor, truth: Tensor) -> np.ndarray:
    """f32 [B, K, M, D] twice -> f32 [B, K]."""
    return (forecast - truth).square().mean(dim=(2, 3)).cpu().numpy()


def _mean_latent_mse(square: np.ndarray, latent: Mapping[int, np.ndarray]) -> np.ndarray:
    """Error of the constant that fits these very targets best: E|y|^2 - 2 E[y] m + m^2, m their mean [D].

    So no token is kept; and the baseline is, if anything, too good.
    """
    if not latent:
        return square
    rows = np.array(sorted(latent))
    means = np.stack([latent[row] for row in rows]).astype(np.float64)  # [n, K, D]
    mean = means.mean(axis=(0, 1))
    errors = square.copy()
    errors[rows] += ((mean**2).mean() - 2 * (means * mean).mean(axis=-1)).astype(np.float32)
    return errors


def forecasting(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Errors of the forecast and of both baselines; the forecast's relative to persistence (below 1 is better), and its
    R2, the share of the latents' variance that it explains (above 0 it is better than their mean).
    """
    protocol = "mean squared error on the teacher's latents, test"
    derived = {
        "forecast_relative": "forecast_mse over persistence_mse, test",
        "forecast_r2": "1 - forecast_mse over mean_latent_mse, test",
    }
    test = features.part("test")
    if test.errors is None:
        protocols = dict.fromkeys(METRICS, protocol) | derived
        return [missing(name, how, NO_FORECASTER) for name, how in protocols.items()]
    bootstrap = Bootstrap(test.groups, cfg.resamples, cfg.seed)
    scores = {metric: getattr(test.errors, field).mean(axis=1) for metric, field in METRICS.items()}
    n = int(np.isfinite(scores["forecast_mse"]).sum())
    samples = {metric: bootstrap.mean(score) for metric, score in scores.items()}
    short = "test videos too short for a context and its targets, left out: "
    note = f"{short}{len(test.groups) - n}" if n < len(test.groups) else None
    results = [
        bootstrap.result(
            metric, samples[metric], n, protocol, note, float(np.nanstd(scores[metric])) if n else None
        )
        for metric in METRICS
    ]
    relations = {
        "forecast_relative": ratio(samples["forecast_mse"], samples["persistence_mse"]),
        "forecast_r2": 1 - ratio(samples["forecast_mse"], samples["mean_latent_mse"]),
    }
    return results + [bootstrap.result(name, relations[name], n, how, note) for name, how in derived.items()]
