"""bf16 under autocast: which tensors are bf16, which stay fp32, and how far the loss moves."""

import copy
from collections import defaultdict

import pytest
import timm.layers
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mofore.models.ema import update_teacher
from mofore.models.losses import info_nce
from mofore.models.objective import Pretraining, build_pretraining
from mofore.types import Batch, Losses, Targets
from tests.models.small_model import PAPER, model_config, random_batch, random_tokens
from tests.small import SMALL

BF16, FP32 = torch.bfloat16, torch.float32
# Plain; layer scale and registers; a norm before the blocks; per-frame and pooled.
RECIPES = {
    "default": SMALL,
    "patch norm, checkpointed": (
        *SMALL,
        "backbone.patch_norm=true",
        "backbone.grad_checkpoint_every=1",
    ),
    "dinov2": (*SMALL, "backbone.name=vit_small_patch14_reg4_dinov2"),
    "clip": (*SMALL, "backbone.name=vit_base_patch16_clip_224", "loss.query=context"),
    "paper": PAPER,
    "pooled": (*SMALL, "forecaster.kind=mlp"),
}


def build(recipe: str, device: torch.device) -> tuple[Pretraining, Batch]:
    """A model and a batch; half of the tokens for the student, a quarter for the teacher."""
    model, batch = build_pretraining(model_config(RECIPES[recipe]), 0), random_batch()
    if recipe != "paper":
        visible, teacher_visible = random_tokens(4, 16, seed=1), random_tokens(4, 8, seed=2)
        batch = batch._replace(visible=visible, teacher_visible=teacher_visible)
    return model.to(device), Batch(*(tensor.to(device) for tensor in batch))


def run(model: Pretraining, batch: Batch, bf16: bool) -> tuple[Targets, Losses]:
    with torch.autocast(batch.gaps.device.type, BF16, enabled=bf16):
        targets = model(batch)
        return targets, model(batch, targets, targets.keys)


def record_dtypes(model: Pretraining) -> dict[str, set[torch.dtype]]:
    """The dtypes that the following calls show, by what they are of."""
    seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def watch(module: nn.Module, of_input: str | None, of_output: str | None) -> None:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if of_input:
                seen[of_input].add(args[0].dtype)
            if of_output:
                seen[of_output].add(output.dtype)

        module.register_forward_hook(hook)

    for name, module in model.named_modules():
        part = name.split(".")[0]
        if isinstance(module, Block):
            watch(module, f"{part} stream", f"{part} stream")
        if isinstance(module, nn.LayerNorm | timm.layers.LayerNorm):
            watch(module, "input of norms", "output of norms")
    watch(model.student, None, "student tokens")
    watch(model.teacher, None, "teacher tokens")
    if hasattr(model.forecaster, "gap_embed"):
        watch(model.forecaster.gap_embed.layers, "Fourier features", "gap embedding")
    return seen


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("mode", [True, False])
def test_dtypes_under_autocast(device, recipe, mode):
    model, batch = build(recipe, device)
    model.train(mode)
    seen = record_dtypes(model)
    targets, losses = run(model, batch, bf16=True)
    losses.total.backward()
    assert seen.pop("Fourier features", {FP32}) == {FP32}
    assert dict(seen) == {name: {BF16} for name in seen}
    assert {"student stream", "teacher stream", "output of norms"} <= set(seen)
    assert ("forecaster stream" in seen) is (not model.pool_latents)
    fp32 = [targets.tokens, *targets.keys, *losses]
    fp32 += [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert {tensor.dtype for tensor in fp32} == {FP32}


def test_everything_is_fp32_without_autocast(device):
    model, batch = build("dinov2", device)
    seen = record_dtypes(model)
    run(model, batch, bf16=False)
    assert set().union(*seen.values()) == {FP32}


# Relative difference of a loss. Measured on a CPU over these recipes: at most 1.1e-3.
TOLERANCE = 5e-3


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_close_to_fp32(device, recipe):
    model, batch = build(recipe, device)
    (_, fp32), (_, bf16) = run(model, batch, bf16=False), run(model, batch, bf16=True)
    for name in ("total", "forecast", "contrastive"):
        expected, found = getattr(fp32, name), getattr(bf16, name)
        assert not torch.equal(expected, found), "the matrix products ran in fp32"
        torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=0)


def test_gradients_are_close_to_fp32(device):
    """Of every weight, by relative norm. Measured on a CPU: at most 0.026."""
    gradients = []
    for bf16 in (False, True):
        model, batch = build("default", device)
        run(model, batch, bf16)[1].total.backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    for name, expected in gradients[0].items():
        difference = (gradients[1][name] - expected).norm() / expected.norm()
        assert difference < 0.05, name


def test_info_nce_is_fp32_under_autocast(device):
    """Loss and gradient bit for bit."""
    torch.manual_seed(0)
    start, keys = torch.randn(8, 48, device=device), torch.randn(8, 48, device=device)
    found = []
    for bf16 in (False, True):
        queries = start.clone().requires_grad_()
        with torch.autocast(device.type, BF16, enabled=bf16):
            loss, _ = info_nce(queries, keys, torch.arange(8, device=device), 0.1)
        loss.backward()
        found.append((loss, queries.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_means_over_bf16_tokens_are_fp32(device):
    """The projection head's input is not rounded to bf16."""
    model, batch = build("default", device)
    inputs = []
    model.projection_head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    run(model, batch, bf16=True)
    assert inputs[0].dtype == FP32
    assert not torch.equal(inputs[0], inputs[0].bfloat16().float())


def test_teacher_update_is_fp32_under_autocast(device):
    """An update that bf16 would round away moves the teacher."""
    model, _ = build("default", device)
    before = copy.deepcopy(model.teacher)
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(0.01)
    with torch.autocast(device.type, BF16):
        update_teacher(model.teacher, model.student, torch.tensor(1e-4, device=device))
    for p, old in zip(model.teacher.parameters(), before.parameters(), strict=True):
        assert p.dtype == FP32
        torch.testing.assert_close(p - old, torch.full_like(p, 1e-6), rtol=0.2, atol=1e-7)
