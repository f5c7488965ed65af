import math

import pytest
import torch

from mofore.collapse import effective_rank, embedding_std

RANDOM = torch.Generator().manual_seed(0)


def gaussian(n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=RANDOM)


def test_isotropic_embeddings_have_full_rank():
    assert effective_rank(gaussian(20000, 16)).item() == pytest.approx(16, rel=0.01)


def test_one_direction_has_rank_one():
    line = gaussian(50, 1) * gaussian(1, 16)
    assert effective_rank(line).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("used", [2, 5, 8])
def test_k_equal_directions_have_rank_k(used):
    basis = torch.linalg.qr(gaussian(16, used)).Q.T.repeat(3, 1)
    assert effective_rank(basis).item() == pytest.approx(used, rel=1e-3)


@pytest.mark.parametrize("shape", [(100, 8), (8, 100), (30, 30)])
def test_the_rank_is_the_exponential_of_the_entropy_of_the_singular_values(shape):
    embeddings = gaussian(*shape) * torch.arange(1, shape[1] + 1)
    share = torch.linalg.svdvals(embeddings.double()).float()
    share = share / share.sum()
    assert effective_rank(embeddings).item() == pytest.approx(
        (-share * share.log()).sum().exp().item(), rel=1e-5
    )


def test_scale_and_rotation_do_not_change_the_rank():
    embeddings = gaussian(100, 8) * torch.arange(1, 9)
    rotation = torch.linalg.qr(gaussian(8, 8)).Q
    assert effective_rank(7 * embeddings @ rotation).item() == pytest.approx(
        effective_rank(embeddings).item(), rel=1e-4
    )


def test_zero_embeddings_have_rank_zero_and_nan_embeddings_rank_nan():
    assert effective_rank(torch.zeros(10, 4)).item() == 0
    assert math.isnan(effective_rank(torch.full((10, 4), torch.nan)).item())


def test_std_of_isotropic_embeddings_is_about_one_and_of_a_point_zero():
    assert embedding_std(gaussian(20000, 64)).item() == pytest.approx(1, abs=0.01)
    assert embedding_std(gaussian(1, 64).repeat(100, 1)).item() == pytest.approx(0, abs=1e-5)
    assert (
        embedding_std(gaussian(1, 64).repeat(100, 1) * torch.arange(1, 101)[:, None]).item() < 1e-5
    )
