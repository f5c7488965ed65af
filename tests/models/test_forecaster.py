"""forecaster: a forecast depends only on its context and, in the transformer, on its gap."""

import pytest
import torch

from mofore.errors import UserError
from mofore.models.forecaster import ForecasterConfig, ForecasterKind, build_forecaster

STEPS, SIDE, DIM = 2, 3, 24
KINDS = list(ForecasterKind)


def build(kind: ForecasterKind) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_forecaster(
        ForecasterConfig(kind, dim=48, depth=2, heads=3), DIM, STEPS, SIDE
    ).eval()


def tokens(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, STEPS * SIDE**2, DIM, generator=torch.Generator().manual_seed(0))


GAPS = torch.tensor([[0.0, 0.5], [1.0, 0.1], [2.0, 2.0]])


@pytest.mark.parametrize(
    ("kind", "length"), [(ForecasterKind.transformer, 18), (ForecasterKind.mlp, 1)]
)
def test_shapes(kind, length):
    forecast = build(kind)(tokens(), GAPS)
    assert (forecast.shape, forecast.dtype) == ((3, 2, length, DIM), torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_forecast_depends_only_on_its_own_context_and_gap(kind):
    model = build(kind)
    whole = model(tokens(), GAPS)
    for b in range(3):
        for k in range(2):
            alone = model(tokens()[b : b + 1], GAPS[b : b + 1, k : k + 1])
            torch.testing.assert_close(alone[0, 0], whole[b, k], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_batch_or_targets_permutes_forecasts(kind):
    model, order = build(kind), torch.tensor([2, 0, 1])
    whole = model(tokens(), GAPS)
    torch.testing.assert_close(
        model(tokens()[order], GAPS[order]), whole[order], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(model(tokens(), GAPS.flip(1)), whole.flip(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "depends"), [(ForecasterKind.transformer, True), (ForecasterKind.mlp, False)]
)
def test_only_the_transformer_depends_on_the_gap(kind, depends):
    model = build(kind)
    near, far = model(tokens(), torch.zeros(3, 1)), model(tokens(), torch.full((3, 1), 2.0))
    assert torch.equal(near, far) is not depends


def test_gap_embedding_is_continuous():
    """A gap 1 ms longer changes a forecast less than a gap 1 s longer."""
    model = build(ForecasterKind.transformer)
    here, close, far = (model(tokens(), torch.full((3, 1), gap)) for gap in (0.5, 0.501, 1.5))
    assert 0 < (close - here).norm() < 0.2 * (far - here).norm()


def test_forecasts_differ_by_position():
    """With equal context tokens, forecasts at different positions still differ."""
    forecast = build(ForecasterKind.transformer)(torch.zeros(1, 18, DIM), torch.zeros(1, 1))[0, 0]
    assert torch.pdist(forecast).min() > 0


@pytest.mark.parametrize("settings", [{"dim": 50}, {"depth": 0}, {"heads": 0}])
def test_invalid_settings_raise(settings):
    with pytest.raises(UserError, match=f"forecaster.{next(iter(settings))}"):
        ForecasterConfig(**{"dim": 48, "heads": 3} | settings)
