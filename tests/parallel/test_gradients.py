"""Gradients: averaged in buckets during backward, measured, clipped, and skipped if not finite."""

import pytest
import torch
from torch import nn

from mofore.parallel import gradients
from mofore.parallel.engine import backward_and_step, build_engine, start_ranks
from mofore.parallel.engine_config import EngineConfig
from mofore.parallel.gradients import OverlappedAverage
from tests.ranks import run_ranks


def build(stage: int, clip_grad: float = 0.0) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    engine = build_engine(model, optimizer, EngineConfig(zero_stage=stage), 1, 1, clip_grad)
    return model, engine


@pytest.fixture
def one_rank(environment) -> None:
    start_ranks(EngineConfig())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_norm_and_clipping_are_those_of_torch(one_rank, stage):
    model, engine = build(stage, clip_grad=0.1)
    reference, _ = build(0)
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    reference(inputs).square().sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, fused=True)
    optimizer.step()
    norm = backward_and_step(engine, engine(inputs).square().sum())
    assert isinstance(norm, torch.Tensor)
    torch.testing.assert_close(norm, expected)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_gradients_that_are_not_finite_change_nothing(one_rank, stage, bad):
    """Neither weights nor moments nor the step count; the next update is as if nothing was."""
    model, engine = build(stage, clip_grad=1.0)
    other, other_engine = build(stage, clip_grad=1.0)
    inputs = torch.ones(3, 4)
    for each in (engine, other_engine):
        backward_and_step(each, each(inputs).square().sum())
    before = [p.detach().clone() for p in model.parameters()]
    norm = backward_and_step(engine, engine(inputs).sum() * bad)
    assert not norm.isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for each in (engine, other_engine):
        backward_and_step(each, each(inputs).square().sum())
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_buckets_are_consecutive_and_complete(monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_ELEMENTS", 100)
    sizes = (30, 80, 120, 5, 5)
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    buckets = gradients._fill_buckets(parameters)
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[30, 80], [120], [5, 5]]


@pytest.mark.ranks
def test_overlapped_averages_are_the_means_over_ranks():
    """With accumulation, several buckets, and a parameter that the loss does not depend on."""
    assert "averages are right" in run_ranks(2, "tests.parallel.test_gradients")


def check_averages() -> None:
    """On each rank: gradients of two backward passes, the second of which is averaged."""
    from mofore.parallel.collectives import get_rank

    start_ranks(EngineConfig())
    gradients.BUCKET_ELEMENTS = 20
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4) for _ in range(3)]
    unused = nn.Parameter(torch.zeros(3))
    parameters = [p for layer in layers for p in layer.parameters()]
    last = False
    average = OverlappedAverage([*parameters[:2], unused, *parameters[2:]], lambda: last)
    assert len(average.buckets) > 2

    def loss(rank: int, part: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(10 * rank + part)
        return nn.Sequential(*layers)(torch.randn(5, 4, generator=generator)).square().sum()

    for _ in range(2):  # a second step starts anew
        for part in range(2):
            last = part == 1
            loss(get_rank(), part).backward()
        average.finish()
        found = [p.grad.clone() for p in parameters]
        assert unused.grad is None
        total = sum(loss(rank, part) for rank in range(2) for part in range(2)) / 2
        expected = torch.autograd.grad(total, parameters)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        for p in parameters:
            p.grad = None
    print("averages are right")


if __name__ == "__main__":
    check_averages()
