"""Sparse teacher: it sees only the tokens that are forecast."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mofore.config import PretrainConfig, compose
from mofore.errors import UserError
from mofore.models.forecaster import ForecasterKind
from mofore.models.losses import Query, Regression, normalise
from mofore.models.objective import Pretraining, build_pretraining
from mofore.types import Batch
from tests.models.small_model import (
    TOKENS,
    compute_losses,
    model_config,
    random_batch,
    random_tokens,
)
from tests.small import SMALL

SEEN = random_tokens(4, 5, seed=1)  # by the teacher
VARIANTS = [
    (),
    ("backbone.grad_checkpoint_every=1",),
    ("loss.regression=smooth_l1",),
    ("loss.query=context",),
    ("loss.query=forecast",),
    ("forecaster.kind=mlp",),
    ("loss.contrastive_weight=0",),
    ("backbone.reg_tokens=3", "loss.normalise_targets=false"),
]


def build(*overrides: str) -> Pretraining:
    return build_pretraining(model_config((*SMALL, *overrides)), 0)


def sparse_batch(student: int = 0) -> Batch:
    """The teacher sees SEEN; the student `student` tokens, or all."""
    visible = random_tokens(4, student, seed=2)
    return random_batch()._replace(visible=visible, teacher_visible=SEEN)


def blacken(clips: Tensor, tokens: Tensor) -> Tensor:
    """Clips u8 [B, C, 4, 32, 32] with black pixels in the tubelets i64 [B, n] of each."""
    clips = clips.clone()
    for clip, indices in zip(clips, tokens.tolist(), strict=True):
        for index in indices:
            step, row, column = index // 16, index // 4 % 4, index % 4
            clip[:, 2 * step :, 8 * row :, 8 * column :][:, :2, :8, :8] = 0
    return clips


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("student", [0, 16])
def test_naming_all_tokens_equals_naming_none(overrides, student):
    """Losses and gradients, to fp32 rounding."""
    every = torch.arange(TOKENS).expand(4, -1)
    batch = sparse_batch(student)
    found = []
    for seen in (torch.zeros(4, 0, dtype=torch.int64), every):
        model = build(*overrides)
        losses = compute_losses(model, batch._replace(teacher_visible=seen))
        losses.total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((losses, gradients))
    (expected, expected_gradients), (losses, gradients) = found
    torch.testing.assert_close(tuple(losses), tuple(expected), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("overrides", VARIANTS)
@pytest.mark.parametrize("student", [0, 16])
def test_every_variant_trains(overrides, student):
    """Each weight that the loss needs gets a gradient; query positions only where forecast."""
    model, batch = build(*overrides), sparse_batch(student)
    losses = compute_losses(model, batch)
    losses.total.backward()
    assert all(loss.isfinite() for loss in losses)
    for name, p in model.named_parameters():
        head_is_unused = name.startswith("projection_head.") and "contrastive_weight=0" in str(
            overrides
        )
        if p.requires_grad and not head_is_unused:
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().sum() > 0, name
    if not model.pool_latents:
        rows = model.forecaster.query_positions.grad[0].abs().sum(dim=1)
        assert rows.nonzero().flatten().tolist() == SEEN.unique().tolist()


@pytest.mark.parametrize("kind", list(ForecasterKind))
def test_targets_are_the_latents_of_the_visible_tokens(kind):
    """The teacher sees the same tokens of every clip of a video; keys are means over them."""
    model, batch = build(f"forecaster.kind={kind.name}"), sparse_batch()
    targets = model(batch)
    for found, keys, clips in (
        (targets.tokens, targets.keys.targets, batch.targets),
        (None, targets.keys.contexts, batch.context.unsqueeze(1)),
    ):
        latents = []
        for video in range(4):
            for clip in clips[video]:
                tokens = model.teacher(clip[None], SEEN[video : video + 1])
                pooled = model.pool_latents
                latents.append(normalise(tokens.mean(dim=1, keepdim=True) if pooled else tokens))
        expected = torch.cat(latents)
        torch.testing.assert_close(keys, expected.mean(dim=1), rtol=1e-4, atol=1e-5)
        if found is not None:
            assert found.shape == (4, 2, 1 if model.pool_latents else 5, 48)
            torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regression", list(Regression))
def test_pixels_that_nobody_sees_have_no_effect(regression):
    """Black tubelets of the tokens that neither student nor teacher sees leave every loss."""
    model, batch = build(f"loss.regression={regression.name}"), sparse_batch(student=8)
    seen = [set(a) | set(b) for a, b in zip(SEEN.tolist(), batch.visible.tolist(), strict=True)]
    hidden = [sorted(set(range(TOKENS)) - tokens)[:8] for tokens in seen]
    unseen = torch.tensor(hidden)
    for tokens, same in ((unseen, True), (SEEN[:, :1], False)):
        other = batch._replace(
            context=blacken(batch.context, tokens),
            targets=blacken(batch.targets.flatten(0, 1), tokens.repeat_interleave(2, 0)).unflatten(
                0, (4, 2)
            ),
        )
        equal = [
            torch.equal(a, b)
            for a, b in zip(
                compute_losses(model, batch)[:3], compute_losses(model, other)[:3], strict=True
            )
        ]
        assert all(equal) if same else not any(equal)


def test_forecasts_are_at_the_positions_of_their_tokens():
    """Without blocks a forecast depends on its query alone: those of some tokens are those of all
    tokens, gathered.
    """
    model, batch = build(), sparse_batch()
    model.forecaster.blocks = torch.nn.ModuleList()
    tokens = model.student(batch.context)
    every = model.forecaster(tokens, batch.gaps)
    some = model.forecaster(tokens, batch.gaps, forecast_tokens=SEEN)
    expected = torch.stack([every[video][:, SEEN[video]] for video in range(4)])
    torch.testing.assert_close(some, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_forecasts_all_tokens():
    model, batch = build("teacher.token_keep_ratio=0.25"), sparse_batch()
    assert model.forecast(batch.context, batch.gaps).shape == (4, 2, TOKENS, 48)
    assert model.teacher_latents(batch.targets).shape == (4, 2, TOKENS, 48)


def test_loss_does_not_depend_on_micro_batches():
    model, batch = build(), sparse_batch(student=16)
    targets = model(batch)
    whole = model(batch, targets, targets.keys).total
    parts = []
    for i in range(2):
        part = Batch(*(tensor.chunk(2)[i] for tensor in batch))
        parts.append(model(part, model(part), targets.keys, first_video=2 * i).total)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_per_frame_attention_refuses_a_sparse_teacher():
    overrides = (*SMALL, "data.manifest=x", "backbone.attention=per_frame")
    assert compose(PretrainConfig, [*overrides]).teacher.token_keep_ratio == 1
    with pytest.raises(UserError, match=r"teacher.token_keep_ratio=0.5 .*per_frame"):
        compose(PretrainConfig, [*overrides, "teacher.token_keep_ratio=0.5"])


def test_context_query_needs_no_context_keys():
    config = model_config(SMALL)
    one_way = replace(config, loss=replace(config.loss, query=Query.context))
    targets = build_pretraining(one_way, 0)(sparse_batch())
    assert targets.keys.contexts.shape == (0, 48)
