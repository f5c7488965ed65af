"""The model on the meta device: every backbone in seconds, with the shapes of the real one."""

import time
from pathlib import Path

import pytest
import torch
from torch import nn

from mofore.config import CONFIG_DIR, PretrainConfig, compose
from mofore.models.objective import ModelConfig, build_meta_pretraining, build_pretraining
from mofore.types import Batch
from tests.models.small_model import PAPER, compute_losses, model_config, random_batch
from tests.small import SMALL

BACKBONES = sorted(path.stem for path in Path(CONFIG_DIR, "backbone").glob("*.yaml"))


def backbone_config(name: str) -> ModelConfig:
    return compose(PretrainConfig, [f"backbone={name}", "data.size=224", "data.manifest=x"]).model()


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def transformer_parameters(dim: int, depth: int, hidden: int) -> int:
    """Of blocks with qkv bias, and the last norm: matrices, biases, norms."""
    block = (4 * dim + 2 * hidden) * dim + (3 + 1 + 1 + 4) * dim + hidden
    return depth * block + 2 * dim


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_builds_without_memory(name):
    """The blocks of the student have the parameters that their sizes say; so does the teacher."""
    start = time.monotonic()
    model = build_meta_pretraining(backbone_config(name))
    assert time.monotonic() - start < 30
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    student = model.student
    hidden = student.blocks[0].mlp.fc1.out_features
    expected = transformer_parameters(student.dim, len(student.blocks), hidden)
    assert parameters(student.blocks) + parameters(student.norm) == expected
    pixels = 3 * student.tubelet_size * student.patch_size**2
    assert parameters(student.tubelet_embed) == (pixels + 1) * student.dim
    assert parameters(model.teacher) == parameters(student)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("vit_tiny", 5.5),
        ("vit_small", 21.7),
        ("vit_base", 85.8),
        ("vit_large", 303.3),
        ("vit_huge", 630.8),
        ("vit_giant", 1011),
        ("vit_gigantic", 1843),
    ],
)
def test_sizes_are_those_of_the_papers(name, millions):
    """In millions, without a classifier. A tubelet of two frames adds at most 4% to them."""
    student = build_meta_pretraining(backbone_config(name)).student
    assert parameters(student) == pytest.approx(millions * 1e6, rel=0.04)


@pytest.mark.parametrize("overrides", [SMALL, PAPER, (*SMALL, "backbone.reg_tokens=2")])
def test_shapes_dtypes_and_names_are_those_of_the_real_model(overrides):
    config = model_config(overrides)
    real, meta = build_pretraining(config, 0), build_meta_pretraining(config)
    for found, expected in (
        (meta.named_parameters(), real.named_parameters()),
        (meta.named_buffers(), real.named_buffers()),
    ):
        assert [(name, t.shape, t.dtype, t.requires_grad) for name, t in found] == [
            (name, t.shape, t.dtype, t.requires_grad) for name, t in expected
        ]


def test_weights_to_inflate_are_not_read():
    """So a plan needs no file; the shapes are the same."""
    config = model_config((*SMALL, "backbone.pretrained_path=/nowhere/vit.safetensors"))
    meta, plain = build_meta_pretraining(config), build_meta_pretraining(model_config(SMALL))
    assert {n: p.shape for n, p in meta.named_parameters()} == {
        n: p.shape for n, p in plain.named_parameters()
    }
    assert config.backbone.pretrained_path == "/nowhere/vit.safetensors"


@pytest.mark.parametrize("overrides", [SMALL, PAPER])
def test_a_step_runs_on_the_meta_device(overrides):
    """Forward and backward, which is how FLOPs and activations are counted without memory."""
    model = build_meta_pretraining(model_config(overrides))
    losses = compute_losses(model, Batch(*(tensor.to("meta") for tensor in random_batch())))
    losses.total.backward()
    real = build_pretraining(model_config(overrides), 0)
    compute_losses(real, random_batch()).total.backward()
    gradients = [
        {name for name, p in each.named_parameters() if p.grad is not None}
        for each in (model, real)
    ]
    assert gradients[0] == gradients[1]
    assert isinstance(losses.total, torch.Tensor)
    assert losses.total.is_meta
