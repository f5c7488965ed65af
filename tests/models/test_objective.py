"""pretraining: one module of student, teacher and forecaster, and the objective they are trained by."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mofore.config import PretrainConfig, compose
from mofore.errors import UserError
from mofore.models.losses import forecasting_loss, info_nce, normalise
from mofore.models.objective import LossConfig, ModelConfig, Pretraining, Query, build_pretraining
from mofore.types import Batch, Keys, Losses
from tests.small import SMALL

PAPER = (
    "experiment=paper",
    "backbone.depth=2",
    "backbone.embed_dim=48",
    "backbone.num_heads=3",
    "data.frames=4",
    "data.size=32",
    "forecaster.dim=24",
)
SHAPES = [SMALL, PAPER]


def config(words: tuple[str, ...]) -> ModelConfig:
    return compose(PretrainConfig, [*words, "data.manifest=x"]).model()


def batch_of(videos: int = 4, targets: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    clips = torch.randint(
        0, 256, (videos, targets + 1, 3, 4, 32, 32), dtype=torch.uint8, generator=generator
    )
    gaps = torch.rand(videos, targets, generator=generator)
    return Batch(
        clips[:, 0],
        clips[:, 1:],
        gaps,
        torch.arange(videos),
        torch.zeros(videos, 0, dtype=torch.int64),
    )


def losses_of(model: Pretraining, batch: Batch) -> Losses:
    targets = model(batch)
    return model(batch, targets, targets.keys)


@pytest.mark.parametrize("words", SHAPES)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_total_is_forecast_plus_weighted_contrast(words, weight):
    shape = config(words)
    model = build_pretraining(
        replace(shape, loss=replace(shape.loss, contrastive_weight=weight)), 0
    )
    losses = losses_of(model, batch_of())
    assert losses.total.item() == pytest.approx(
        (losses.forecast + weight * losses.contrastive).item(), rel=1e-6
    )
    assert not losses.forecast.requires_grad


@pytest.mark.parametrize("words", SHAPES)
def test_the_terms_are_those_of_teacher_and_forecaster(words):
    """By hand: the teacher's latents of the targets, pooled for the MLP and normalised where the config says."""
    shape = config(words)
    model, batch = build_pretraining(shape, 0), batch_of()
    tokens = model.teacher(batch.targets.flatten(0, 1))
    if words is PAPER:
        tokens = tokens.mean(dim=1, keepdim=True)
    tokens = normalise(tokens) if shape.loss.normalise_targets else tokens
    forecast = model.forecaster(model.student(batch.context), batch.gaps)
    assert forecast.shape == (4, 2, *tokens.shape[1:])
    wanted = forecasting_loss(forecast, tokens.unflatten(0, (4, 2)), shape.loss.regression)
    tau, rows = shape.loss.temperature, torch.arange(8)
    if words is PAPER:
        contrast, accuracy = info_nce(
            forecast.mean(dim=2).flatten(0, 1), tokens.mean(dim=1), rows, tau
        )
    else:
        contrast, accuracy = (
            torch.stack(parts).mean()
            for parts in zip(ahead(model, batch), back(model, batch), strict=True)
        )
    losses = losses_of(model, batch)
    torch.testing.assert_close(losses.forecast, wanted.detach())
    torch.testing.assert_close(losses.contrastive, contrast.detach())
    assert losses.contrastive_accuracy == accuracy


def queries(model: Pretraining, clips: Tensor) -> Tensor:
    return model.head(model.student(clips).mean(dim=1))


def keys_of(model: Pretraining, clips: Tensor) -> Tensor:
    return normalise(model.teacher(clips)).mean(dim=1)


def ahead(model: Pretraining, batch: Batch) -> tuple[Tensor, Tensor]:
    """A context finds each of its two targets, the other one left out, among all."""
    others = torch.zeros(8, 8, dtype=torch.bool)
    for row in range(8):
        others[row, row + 1 - 2 * (row % 2)] = True
    asked = queries(model, batch.context).repeat_interleave(2, dim=0)
    return info_nce(
        asked,
        keys_of(model, batch.targets.flatten(0, 1)),
        torch.arange(8),
        model.loss.temperature,
        others,
    )


def back(model: Pretraining, batch: Batch) -> tuple[Tensor, Tensor]:
    """Each of two targets finds their context among all."""
    asked, own = queries(model, batch.targets.flatten(0, 1)), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    return info_nce(asked, keys_of(model, batch.context), own, model.loss.temperature)


def test_contexts_alone_may_ask():
    model, batch = build_pretraining(config((*SMALL, "loss.query=context")), 0), batch_of()
    contrast, accuracy = ahead(model, batch)
    losses = losses_of(model, batch)
    torch.testing.assert_close(losses.contrastive, contrast.detach())
    assert losses.contrastive_accuracy == accuracy
    assert model(batch).keys.contexts.shape == (0, model.student.dim)


def test_a_student_that_sees_a_part_sees_it_of_targets_too():
    model, batch = build_pretraining(config(SMALL), 0), batch_of()
    batch = batch._replace(kept=torch.arange(0, 32, 2).repeat(4, 1))
    asked = model.head(
        model.student(batch.targets.flatten(0, 1), batch.visible.repeat_interleave(2, dim=0)).mean(
            dim=1
        )
    )
    own = torch.arange(8) // 2
    wanted = info_nce(asked, keys_of(model, batch.context), own, model.loss.temperature)[0]
    one_way = replace(model.loss, query=Query.context)
    other = Pretraining(replace(config(SMALL), loss=one_way))
    other.load_state_dict(model.state_dict())
    back_alone = 2 * losses_of(model, batch).contrast - losses_of(other, batch).contrast
    torch.testing.assert_close(back_alone, wanted.detach())


@pytest.mark.parametrize("words", SHAPES)
def test_all_that_is_trained_gets_a_gradient_and_the_teacher_none(words):
    model = build_pretraining(config(words), 0)
    losses_of(model, batch_of()).total.backward()
    for name, p in model.named_parameters():
        if name.startswith("teacher."):
            assert not p.requires_grad, name
            assert p.grad is None, name
        elif p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    unused = (
        {"student.time"} if words is PAPER else set()
    )  # an encoder of single frames has no time
    assert {name for name in frozen if not name.startswith("teacher.")} == unused


def test_without_contrast_the_student_sees_contexts_alone():
    model = build_pretraining(config((*SMALL, "loss.contrastive_weight=0")), 0)
    seen: list[int] = []
    model.student.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    assert losses_of(model, batch_of()).total.isfinite()
    assert seen == [4]


def test_the_loss_does_not_depend_on_micro_batches():
    """Mean of losses and sum of gradients over micro-batches, against the keys of all, are those of the whole."""
    batch, gradients, totals = batch_of(), [], []
    for parts in (1, 2, 4):
        model = build_pretraining(config(SMALL), 0)
        pieces = [Batch(*(t.chunk(parts)[i] for t in batch)) for i in range(parts)]
        targets = [model(piece) for piece in pieces]
        keys, first, total = Keys.concat([target.keys for target in targets]), 0, 0.0
        for piece, target in zip(pieces, targets, strict=True):
            loss = model(piece, target, keys, first).total / parts
            loss.backward()
            first += len(piece.rows)
            total += loss.item()
        totals.append(total)
        gradients.append(torch.cat([p.grad.flatten() for p in model.student.parameters()]))
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-4 * gradients[0].norm()


def test_the_same_seed_gives_the_same_weights_and_leaves_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = (build_pretraining(config(SMALL), seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_the_teacher_starts_as_the_student_and_never_drops_a_path():
    model = build_pretraining(config((*SMALL, "backbone.drop_path=0.9")), 0)
    for a, b in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    model.train()
    batch = batch_of()
    assert torch.equal(model(batch).tokens, model(batch).tokens)
    assert not torch.equal(model.student(batch.context), model.student(batch.context))


@pytest.mark.parametrize("words", [{"temperature": 0.0}, {"contrastive_weight": -1.0}])
def test_settings_outside_are_refused(words):
    with pytest.raises(UserError, match=f"loss.{next(iter(words))}"):
        LossConfig(**words)
