"""Forecast quality of the frozen model on test videos, against two baselines.

    context -> student -> forecaster -> forecast           |  mean squared error on
    context -> teacher -> latents now (persistence)        |  the teacher's latents
    mean latent over all test targets                      |  of the target

An error alone means little. An encoder whose latents never change is forecast perfectly by
persistence. If latents change so much that persistence is worse than their mean, a forecast that
ignores its context beats persistence: in units of the variance, with a correlation r between now
and then, the error of persistence is 2 - 2 r, that of the mean is 1. So the forecast is compared
with both.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mofore.data.loader import iterate_batches
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.features import Features, ForecastErrors
from mofore.evaluation.intervals import Bootstrap, Result, missing, ratio
from mofore.inference import on_host
from mofore.models.objective import Pretraining
from mofore.precision import Precision, autocast
from mofore.types import Batch

# metric -> field of ForecastErrors
MSE_METRICS = {
    "forecast_mse": "forecast",
    "persistence_mse": "persistence",
    "mean_latent_mse": "mean_latent",
}
MSE_PROTOCOL = "mean squared error on the teacher's latents, test"
RELATIVE_PROTOCOLS = {
    "forecast_relative_mse": "forecast_mse / persistence_mse, test",
    "forecast_r2": "1 - forecast_mse / mean_latent_mse, test",
}
NO_FORECASTER = "this baseline has no forecaster"


@torch.inference_mode()
def forecast_errors(
    models: Mapping[str, Pretraining],
    batches: DataLoader | Sequence[Batch],
    rows: int,
    targets: int,
    device: torch.device,
    precision: Precision = Precision.fp32,
) -> dict[str, ForecastErrors]:
    """Forecast errors of every model on the same clips; each batch is decoded once for all models.

    rows: number of rows of the manifest; targets: K; precision: a resolved one. Returns f32
    [rows, K] arrays, nan for rows that are in no batch.
    """
    empty = np.full((rows, targets), np.nan, dtype=np.float32)
    forecast = {name: empty.copy() for name in models}
    persistence = {name: empty.copy() for name in models}
    square = {name: empty.copy() for name in models}
    # By row: f32 [K, D], the target latents averaged over tokens.
    latents: dict[str, dict[int, np.ndarray]] = {name: {} for name in models}
    progress = tqdm(iterate_batches(batches), desc="forecasts", total=len(batches), leave=False)

    def measured() -> Iterator[list[Tensor]]:
        for batch in progress:
            on_device = Batch(*(part.to(device, non_blocking=True) for part in batch))
            of_models = [_batch_errors(model, on_device, precision) for model in models.values()]
            yield [batch.rows, *(each for errors in of_models for each in errors)]

    for index, *of_models in on_host(measured(), device):
        for number, name in enumerate(models):
            errors = of_models[4 * number : 4 * number + 4]
            forecast[name][index], persistence[name][index], square[name][index] = errors[:3]
            latents[name].update(zip(index.tolist(), errors[3], strict=True))
    return {
        name: ForecastErrors(
            forecast[name], persistence[name], _mean_latent_mse(square[name], latents[name])
        )
        for name in models
    }


def _batch_errors(model: Pretraining, batch: Batch, precision: Precision) -> list[Tensor]:
    """Errors of the forecast, of persistence and of zero f32 [B, K]; mean target latents [B, K, D].

    Stays on the device.
    """
    with autocast(precision, batch.context.device):
        truth = model.teacher_latents(batch.targets)
        now = model.teacher_latents(batch.context.unsqueeze(1))
        forecast = model.forecast(batch.context, batch.gaps)
    guesses = (forecast, now.expand_as(truth), torch.zeros_like(truth))
    return [*((guess - truth).square().mean(dim=(2, 3)) for guess in guesses), truth.mean(dim=2)]


def _mean_latent_mse(square: np.ndarray, latents: Mapping[int, np.ndarray]) -> np.ndarray:
    """Error of the mean latent m [D] over these targets: E|y|^2 - 2 E[y] m + m^2.

    The expanded form needs no stored tokens. The mean is fitted to the very targets that it is
    scored on, so this baseline is slightly too good.
    """
    if not latents:
        return square
    rows = np.array(sorted(latents))
    means = np.stack([latents[row] for row in rows]).astype(np.float64)  # [n, K, D]
    mean = means.mean(axis=(0, 1))
    errors = square.copy()
    errors[rows] += ((mean**2).mean() - 2 * (means * mean).mean(axis=-1)).astype(np.float32)
    return errors


def forecasting(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Errors of the forecast and of both baselines, and the forecast relative to them.

    forecast_relative_mse: relative to persistence; below 1 is better than persistence. forecast_r2:
    fraction of the latents' variance that is explained; above 0 is better than the mean.
    """
    test = features.subset("test")
    if test.errors is None:
        protocols = dict.fromkeys(MSE_METRICS, MSE_PROTOCOL) | RELATIVE_PROTOCOLS
        return [missing(name, protocol, NO_FORECASTER) for name, protocol in protocols.items()]
    bootstrap = Bootstrap(test.groups, cfg.bootstrap_resamples, cfg.seed)
    scores = {name: getattr(test.errors, field).mean(axis=1) for name, field in MSE_METRICS.items()}
    samples = {name: bootstrap.mean(score) for name, score in scores.items()}
    n = int(np.isfinite(scores["forecast_mse"]).sum())
    short = len(test.groups) - n
    note = None
    if short:
        note = f"test videos too short for a context and its targets, left out: {short}"
    results = [
        bootstrap.result(
            name,
            samples[name],
            n,
            MSE_PROTOCOL,
            note,
            float(np.nanstd(scores[name])) if n else None,
        )
        for name in MSE_METRICS
    ]
    relative = {
        "forecast_relative_mse": ratio(samples["forecast_mse"], samples["persistence_mse"]),
        "forecast_r2": 1 - ratio(samples["forecast_mse"], samples["mean_latent_mse"]),
    }
    return results + [
        bootstrap.result(name, relative[name], n, protocol, note)
        for name, protocol in RELATIVE_PROTOCOLS.items()
    ]
