"""Layers that keep the dtype of their input under autocast, so that the residual stream stays bf16.

Autocast runs a layer norm in fp32 on CUDA, and a product with an fp32 parameter promotes its input.
Either would make the residual stream fp32, with a cast before every Linear.
"""

import timm.layers
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import LayerScale
from torch import Tensor, nn


class SameDtypeLayerNorm(nn.LayerNorm):
    """Layer norm in the dtype of its input, with fp32 statistics and gradients summed in fp32.

    Without autocast it is nn.LayerNorm, bit for bit.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] in any floating-point dtype -> the same."""
        if not x.is_cuda:  # the CPU's bf16 kernel sums the gradients of the parameters in bf16
            return super().forward(x.float()).to(x.dtype)
        return self.forward_cuda(x)

    def forward_cuda(self, x: Tensor) -> Tensor:
        """CUDA's kernel sums them in fp32, but needs input and parameters in one dtype."""
        weight, bias = (p if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class SameDtypeLayerScale(LayerScale):
    """timm's LayerScale (Touvron et al. 2021, CaiT) in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] in any floating-point dtype -> the same."""
        return x * self.gamma.to(x.dtype)


def keep_dtype_under_autocast(module: nn.Module) -> None:
    """Make every layer norm and layer scale in the module one of the above, in place.

    Parameters, their names and all settings stay: only the class of the layer changes. timm's own
    switch (`set_fast_norm`) does not reach nn.LayerNorm, which older versions of timm build, and
    calls apex on any device if apex is installed.
    """
    for layer in module.modules():
        if type(layer) in (nn.LayerNorm, timm.layers.LayerNorm):
            layer.__class__ = SameDtypeLayerNorm
        elif type(layer) is LayerScale:
            layer.__class__ = SameDtypeLayerScale
