"""layers: equal to torch's without autocast, and in the dtype of their input under autocast."""

import pytest
import timm.layers
import torch
from timm.models.vision_transformer import LayerScale
from torch import nn

from mofore.models.layers import keep_dtype_under_autocast


def with_random_parameters(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


LAYERS = {
    "torch": lambda: nn.LayerNorm(24),
    "torch, no parameters": lambda: nn.LayerNorm(24, elementwise_affine=False),
    "timm": lambda: timm.layers.LayerNorm(24, eps=1e-4),
    "layer scale": lambda: LayerScale(24, init_values=0.1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_equal_without_autocast_bit_for_bit(name):
    """Output and gradients."""
    found = []
    for convert in (False, True):
        layer = nn.Sequential(with_random_parameters(LAYERS[name]()))
        if convert:
            keep_dtype_under_autocast(layer)
            assert type(layer[0]).__name__.startswith("SameDtype")
        x = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_bf16_in_bf16_out_under_autocast(device, name):
    """Values and gradients are those of fp32, rounded, also after a sum over thousands of rows."""
    layer = nn.Sequential(with_random_parameters(LAYERS[name]())).to(device)
    torch.manual_seed(1)
    start = (3 + torch.randn(4096, 24, device=device)).bfloat16()
    gradient = (torch.randn(24, device=device) + torch.randn_like(start)).bfloat16()
    found = []
    for bf16 in (False, True):
        if bf16:
            keep_dtype_under_autocast(layer)
        x = (start if bf16 else start.float()).requires_grad_()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            y = layer(x)
        assert y.dtype == x.dtype
        layer.zero_grad()
        y.backward(gradient.to(y.dtype))
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for expected, tensor in zip(*found, strict=True):
        assert (tensor.float() - expected).norm() < 0.01 * expected.norm()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_conversion_keeps_parameters_and_names():
    model = nn.Sequential(nn.Linear(4, 4), timm.layers.LayerNorm(4), LayerScale(4))
    before = dict(model.named_parameters())
    keep_dtype_under_autocast(model)
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    assert model[1].eps == 1e-6
