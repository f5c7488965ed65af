"""losses: equal to their formulas as loops, and their invariances."""

import math

import pytest
import torch

from mofore.models.losses import Regression, forecasting_loss, info_nce, normalise


def rows(n: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_info_nce_equals_a_loop(temperature):
    queries, keys, positives = rows(4, seed=1), rows(6, seed=2), torch.tensor([2, 0, 5, 5])
    total, right = 0.0, 0
    for query, positive in zip(queries, positives.tolist(), strict=True):
        scores = [
            float(query @ key) / float(query.norm() * key.norm()) / temperature for key in keys
        ]
        total -= scores[positive] - math.log(sum(math.exp(score) for score in scores))
        right += scores.index(max(scores)) == positive
    loss, accuracy = info_nce(queries, keys, positives, temperature)
    assert loss.item() == pytest.approx(total / 4, rel=1e-5)
    assert accuracy.item() == right / 4


def test_info_nce_ignores_norms():
    queries, keys, positives = rows(4, seed=1), rows(4, seed=2), torch.arange(4)
    loss, _ = info_nce(queries, keys, positives, 0.1)
    scaled, _ = info_nce(3 * queries, keys * torch.tensor([[0.1], [1], [7], [30]]), positives, 0.1)
    assert scaled.item() == pytest.approx(loss.item(), rel=1e-5)


def test_ignored_keys_have_no_effect():
    queries, keys = rows(2, seed=1), rows(5, seed=2)
    ignored = torch.tensor([[False, False, True, False, True]] * 2)
    found = info_nce(queries, keys, torch.tensor([0, 3]), 0.1, ignored)
    expected = info_nce(queries, keys[[0, 1, 3]], torch.tensor([0, 2]), 0.1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
def test_info_nce_does_not_depend_on_micro_batches(splits):
    """The mean over micro-batches against the same keys has the batch's loss and gradient."""
    keys = rows(8, seed=2)
    whole, parts = rows(8, seed=1).requires_grad_(), rows(8, seed=1).requires_grad_()
    expected, accuracy = info_nce(whole, keys, torch.arange(8), 0.1)
    expected.backward()
    found = [
        info_nce(parts[i : i + 8 // splits], keys, torch.arange(i, i + 8 // splits), 0.1)
        for i in range(0, 8, 8 // splits)
    ]
    loss = torch.stack([part for part, _ in found]).mean()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.stack([part for _, part in found]).mean().item() == pytest.approx(accuracy.item())
    torch.testing.assert_close(parts.grad, whole.grad)


@pytest.mark.parametrize("m", [2, 7, 64])
def test_equal_keys_give_log_m(m):
    """After a collapse all keys are equally likely."""
    loss, _ = info_nce(rows(3), torch.ones(m, 8), torch.zeros(3, dtype=torch.long), 0.1)
    assert loss.item() == pytest.approx(math.log(m), rel=1e-5)


def test_perfect_queries():
    keys = torch.eye(8)
    loss, accuracy = info_nce(keys, keys, torch.arange(8), 0.05)
    assert accuracy.item() == 1
    assert loss.item() == pytest.approx(math.log(1 + 7 * math.exp(-1 / 0.05)), abs=1e-6)


def test_forecasting_losses_follow_their_formulas():
    a, b = rows(6, seed=1).view(1, 2, 3, 8), 1.5 * rows(6, seed=2).view(1, 2, 3, 8)
    difference = (a - b).abs()
    assert forecasting_loss(a, b, Regression.mse).item() == pytest.approx(
        difference.square().mean().item()
    )
    smooth = torch.where(difference < 1, difference.square() / 2, difference - 0.5).mean()
    assert forecasting_loss(a, b, Regression.smooth_l1).item() == pytest.approx(smooth.item())
    for regression in Regression:
        assert forecasting_loss(a, a, regression).item() == 0


@pytest.mark.parametrize("regression", list(Regression))
def test_target_gets_no_gradient(regression):
    forecast, target = rows(6, seed=1).requires_grad_(), rows(6, seed=2).requires_grad_()
    forecasting_loss(forecast, target, regression).backward()
    assert target.grad is None
    assert forecast.grad.abs().sum() > 0


def test_normalise_removes_scale_and_offset():
    latents = rows(5, dim=64)
    for changed in (latents, 100 * latents, latents + 7):
        unit = normalise(changed)
        assert unit.mean(dim=-1).abs().max() < 1e-5
        torch.testing.assert_close(unit.square().mean(dim=-1), torch.ones(5), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(unit, normalise(latents), rtol=1e-3, atol=1e-3)
