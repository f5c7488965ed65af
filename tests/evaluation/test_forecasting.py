from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from mofore.evaluation.features import ForecastErrors
from mofore.evaluation.forecasting import forecast_errors, forecasting
from mofore.models.backbone import BackboneConfig
from mofore.models.forecaster import ForecasterConfig, ForecasterKind
from mofore.models.losses import LossConfig
from mofore.models.objective import ModelConfig, build_pretraining
from mofore.types import Batch

CPU = torch.device("cpu")


def measured(features, cfg) -> list[Any]:
    return list(forecasting(features, cfg))


def model(kind=ForecasterKind.transformer, normalise=True):
    backbone = BackboneConfig(embed_dim=16, depth=1, num_heads=2, patch_size=8)
    config = ModelConfig(
        4, 16, backbone, ForecasterConfig(kind, 16, 1, 2), LossConfig(normalise_targets=normalise)
    )
    return build_pretraining(config, seed=0).eval()


def batch(rows: list[int], targets: int = 2) -> Batch:
    random = torch.Generator().manual_seed(rows[0])
    shape = (len(rows), targets + 1, 3, 4, 16, 16)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    gaps = torch.rand(len(rows), targets, generator=random)
    return Batch(
        clips[:, 0],
        clips[:, 1:],
        gaps,
        torch.tensor(rows),
        visible=torch.zeros(len(rows), 0, dtype=torch.int64),
        teacher_visible=torch.zeros(len(rows), 0, dtype=torch.int64),
    )


@pytest.mark.parametrize("kind", ForecasterKind)
@pytest.mark.parametrize("normalise", [True, False])
def test_errors_match_their_definition(kind, normalise):
    network, batches = model(kind, normalise), [batch([4, 1]), batch([2])]
    errors = forecast_errors({"trained": network}, batches, 6, 2, CPU)["trained"]
    with torch.inference_mode():
        truth = torch.cat([network.teacher_latents(b.targets) for b in batches])  # rows 4, 1, 2
        forecast = torch.cat([network.forecast(b.context, b.gaps) for b in batches])
        now = torch.cat([network.teacher_latents(b.context[:, None]) for b in batches])
    mean = truth.mean(dim=(0, 1, 2))
    for field, guess in {"forecast": forecast, "persistence": now, "mean_latent": mean}.items():
        found = getattr(errors, field)
        np.testing.assert_allclose(
            found[[4, 1, 2]], (guess - truth).square().mean((2, 3)), rtol=1e-4, atol=1e-6
        )
        assert np.isnan(found[[0, 3, 5]]).all()


def test_persistence_has_no_error_on_static_videos():
    static = batch([0, 1])
    static = static._replace(targets=static.context[:, None].expand(-1, 2, -1, -1, -1, -1))
    errors = forecast_errors({"trained": model()}, [static], 2, 2, CPU)["trained"]
    assert errors.persistence.max() < 1e-8
    assert errors.forecast.min() > 0.1


def test_without_forecasts_there_is_no_value(make_features, cfg):
    errors = forecast_errors({"trained": model()}, [], 72, 2, CPU)["trained"]
    features = make_features()
    for result in measured(replace(features, errors=errors), cfg):
        assert result.value is None
        assert result.note


def test_the_relative_error_is_a_ratio_of_means_and_short_videos_are_counted(make_features, cfg):
    features = make_features()
    n = len(features.labels)
    rng = np.random.default_rng(0)
    errors = ForecastErrors(*(rng.uniform(1, 2, size=(n, 2)).astype(np.float32) for _ in range(3)))
    short = np.flatnonzero(features.splits == "test")[:4]
    for array in (errors.forecast, errors.persistence, errors.mean_latent):
        array[short] = np.nan
    found = {result.metric: result for result in measured(replace(features, errors=errors), cfg)}
    test = features.splits == "test"
    forecast, persistence, mean = (
        np.nanmean(array[test])
        for array in (errors.forecast, errors.persistence, errors.mean_latent)
    )
    assert found["forecast_mse"].value == pytest.approx(forecast, rel=1e-5)
    assert found["forecast_relative_mse"].value == pytest.approx(forecast / persistence, rel=1e-5)
    assert found["forecast_r2"].value == pytest.approx(1 - forecast / mean, rel=1e-4)
    assert found["forecast_mse"].n == test.sum() - 4
    assert "left out: 4" in found["forecast_mse"].note


def test_pixel_baselines_have_no_forecast(make_features, cfg):
    results = measured(make_features(), cfg)
    assert {result.metric for result in results} >= {
        "forecast_mse",
        "persistence_mse",
        "mean_latent_mse",
    }
    assert all(result.value is None and "baseline" in result.note for result in results)
