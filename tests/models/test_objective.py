"""objective: the losses by hand, which parameters train, and independence of micro-batches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mofore.errors import UserError
from mofore.models.losses import LossConfig, Query, forecasting_loss, info_nce, normalise
from mofore.models.objective import Pretraining, build_pretraining
from mofore.types import Batch, Keys
from tests.models.small_model import PAPER, compute_losses, model_config, random_batch
from tests.small import SMALL

CONFIGS = [SMALL, PAPER]


@pytest.mark.parametrize("overrides", CONFIGS)
@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_total_is_forecast_plus_weighted_contrastive_loss(overrides, weight):
    plain = model_config(overrides)
    weighted = replace(plain, loss=replace(plain.loss, contrastive_weight=weight))
    model = build_pretraining(weighted, 0)
    losses = compute_losses(model, random_batch())
    assert losses.total.item() == pytest.approx(
        (losses.forecast + weight * losses.contrastive).item(), rel=1e-6
    )
    assert not losses.forecast.requires_grad


@pytest.mark.parametrize("overrides", CONFIGS)
def test_losses_equal_those_computed_by_hand(overrides):
    """Latents of the targets are pooled for the MLP, and normalised if the config says so."""
    config = model_config(overrides)
    model, batch = build_pretraining(config, 0), random_batch()
    tokens = model.teacher(batch.targets.flatten(0, 1))
    if overrides is PAPER:
        tokens = tokens.mean(dim=1, keepdim=True)
    tokens = normalise(tokens) if config.loss.normalise_targets else tokens
    forecast = model.forecaster(model.student(batch.context), batch.gaps)
    assert forecast.shape == (4, 2, *tokens.shape[1:])
    regression = config.loss.regression
    expected = forecasting_loss(forecast, tokens.unflatten(0, (4, 2)), regression)
    temperature = config.loss.temperature
    if overrides is PAPER:
        mean_forecasts = forecast.mean(dim=2).flatten(0, 1)
        contrastive, accuracy = info_nce(
            mean_forecasts, tokens.mean(dim=1), torch.arange(8), temperature
        )
    else:
        both = zip(context_to_target(model, batch), target_to_context(model, batch), strict=True)
        contrastive, accuracy = (torch.stack(directions).mean() for directions in both)
    losses = compute_losses(model, batch)
    torch.testing.assert_close(losses.forecast, expected.detach())
    torch.testing.assert_close(losses.contrastive, contrastive.detach())
    assert losses.contrastive_accuracy == accuracy


def queries(model: Pretraining, clips: Tensor) -> Tensor:
    return model.projection_head(model.student(clips).mean(dim=1))


def keys_of(model: Pretraining, clips: Tensor) -> Tensor:
    return normalise(model.teacher(clips)).mean(dim=1)


def context_to_target(model: Pretraining, batch: Batch) -> tuple[Tensor, Tensor]:
    """InfoNCE from each context to each of its two targets, with the other one ignored."""
    siblings = torch.zeros(8, 8, dtype=torch.bool)
    for row in range(8):
        siblings[row, row + 1 - 2 * (row % 2)] = True
    contexts = queries(model, batch.context).repeat_interleave(2, dim=0)
    keys, temperature = keys_of(model, batch.targets.flatten(0, 1)), model.loss_config.temperature
    return info_nce(contexts, keys, torch.arange(8), temperature, siblings)


def target_to_context(model: Pretraining, batch: Batch) -> tuple[Tensor, Tensor]:
    """InfoNCE from each of two targets to their context."""
    targets = queries(model, batch.targets.flatten(0, 1))
    positives = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    keys, temperature = keys_of(model, batch.context), model.loss_config.temperature
    return info_nce(targets, keys, positives, temperature)


def test_query_context_uses_one_direction():
    model, batch = (
        build_pretraining(model_config((*SMALL, "loss.query=context")), 0),
        random_batch(),
    )
    contrastive, accuracy = context_to_target(model, batch)
    losses = compute_losses(model, batch)
    torch.testing.assert_close(losses.contrastive, contrastive.detach())
    assert losses.contrastive_accuracy == accuracy
    assert model(batch).keys.contexts.shape == (0, model.student.dim)


def test_student_drops_the_same_tokens_of_targets():
    """The loss from target to context alone: twice the symmetric loss minus the other direction."""
    model, batch = build_pretraining(model_config(SMALL), 0), random_batch()
    batch = batch._replace(visible=torch.arange(0, 32, 2).repeat(4, 1))
    targets, visible = batch.targets.flatten(0, 1), batch.visible.repeat_interleave(2, dim=0)
    target_queries = model.projection_head(model.student(targets, visible).mean(dim=1))
    keys, temperature = keys_of(model, batch.context), model.loss_config.temperature
    expected = info_nce(target_queries, keys, torch.arange(8) // 2, temperature)[0]
    one_way = replace(model.loss_config, query=Query.context)
    other = Pretraining(replace(model_config(SMALL), loss=one_way))
    other.load_state_dict(model.state_dict())
    symmetric = compute_losses(model, batch).contrastive
    found = 2 * symmetric - compute_losses(other, batch).contrastive
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("overrides", CONFIGS)
def test_all_but_the_teacher_get_gradients(overrides):
    model = build_pretraining(model_config(overrides), 0)
    compute_losses(model, random_batch()).total.backward()
    for name, p in model.named_parameters():
        if name.startswith("teacher."):
            assert not p.requires_grad, name
            assert p.grad is None, name
        elif p.requires_grad:
            assert p.grad is not None, name
            assert p.grad.abs().sum() > 0, name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    # per_frame attention does not use temporal positions.
    unused = {"student.temporal_positions"} if overrides is PAPER else set()
    assert {name for name in frozen if not name.startswith("teacher.")} == unused


def test_without_contrastive_loss_the_student_encodes_only_contexts():
    model = build_pretraining(model_config((*SMALL, "loss.contrastive_weight=0")), 0)
    clips: list[int] = []
    model.student.register_forward_hook(lambda _, args, __: clips.append(len(args[0])))
    assert compute_losses(model, random_batch()).total.isfinite()
    assert clips == [4]


def test_loss_does_not_depend_on_micro_batches():
    """Mean loss and accumulated gradient of micro-batches, against all keys, equal the batch's."""
    batch, gradients, totals = random_batch(), [], []
    for parts in (1, 2, 4):
        model = build_pretraining(model_config(SMALL), 0)
        micro_batches = [Batch(*(t.chunk(parts)[i] for t in batch)) for i in range(parts)]
        targets = [model(micro_batch) for micro_batch in micro_batches]
        keys, first, total = Keys.concat([target.keys for target in targets]), 0, 0.0
        for micro_batch, target in zip(micro_batches, targets, strict=True):
            loss = model(micro_batch, target, keys, first).total / parts
            loss.backward()
            first += len(micro_batch.rows)
            total += loss.item()
        totals.append(total)
        gradients.append(torch.cat([p.grad.flatten() for p in model.student.parameters()]))
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() < 1e-4 * gradients[0].norm()


def test_equal_seeds_give_equal_weights_and_keep_the_random_state():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two, other = (build_pretraining(model_config(SMALL), seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)
    )


def test_building_touches_no_gpu(monkeypatch):
    """A mock stands in for a machine with several GPUs: a rank must initialise only its own."""

    def touch(*_):
        raise AssertionError("touches a GPU")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, touch)
    build_pretraining(model_config(SMALL), 0)


def test_teacher_starts_as_the_student_and_has_no_stochastic_depth():
    model = build_pretraining(model_config((*SMALL, "backbone.drop_path=0.9")), 0)
    for a, b in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
    model.train()
    batch = random_batch()
    assert torch.equal(model(batch).tokens, model(batch).tokens)
    assert not torch.equal(model.student(batch.context), model.student(batch.context))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"contrastive_weight": -1.0}])
def test_invalid_settings_raise(settings):
    with pytest.raises(UserError, match=f"loss.{next(iter(settings))}"):
        LossConfig(**settings)
