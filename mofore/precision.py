"""Number formats of the computation: which one a device supports, and the autocast that applies it.

Weights, optimizer moments, gradients that ranks exchange, losses and the teacher's average are fp32
in each of them.
"""

from enum import Enum

import torch

from mofore.errors import UserError


class Precision(Enum):
    """Number format of the matrix products."""

    auto = "auto"  # bf16 on a GPU that has it, tf32 on another GPU, fp32 on a CPU
    fp32 = "fp32"
    tf32 = "tf32"  # fp32 tensors; a GPU rounds the factors of a product to 10 bits of mantissa
    bf16 = "bf16"  # torch.autocast; what it leaves in fp32 runs as with tf32


def resolve_precision(
    precision: Precision, device: torch.device, key: str = "engine.precision"
) -> Precision:
    """The precision that `auto` stands for on this device; any other is returned as it is.

    Raises UserError, which names the configuration's key, for bf16 on a GPU without bf16 units.
    """
    on_gpu = device.type == "cuda"
    # Without emulation: an emulated product is slower than one in fp32.
    has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision is Precision.bf16 and on_gpu and not has_bf16:
        raise UserError(
            f"{key}=bf16: {torch.cuda.get_device_name(device)} has no bf16 units. Give "
            f"{key}=auto, tf32 or fp32."
        )
    if precision is not Precision.auto:
        return precision
    if not on_gpu:
        return Precision.fp32
    return Precision.bf16 if has_bf16 else Precision.tf32


def set_matmul_precision(precision: Precision) -> None:
    """Allow or forbid TF32 in this process's fp32 products. precision: a resolved one."""
    torch.set_float32_matmul_precision("highest" if precision is Precision.fp32 else "high")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass outside the engine. precision: a resolved one."""
    enabled = precision is Precision.bf16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
