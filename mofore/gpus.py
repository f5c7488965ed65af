"""GPUs by name: their memory and their peak rates in matrix products."""

import re
from typing import NamedTuple

from mofore.precision import Precision


class GPU(NamedTuple):
    """Rates are the vendor's for dense products, in TFLOP/s; None: the GPU has no such units."""

    name: str  # of `mofore plan --gpu`; its words are words of torch.cuda.get_device_name()
    memory_gib: float  # that CUDA can allocate, rounded down
    bf16_tflops: float | None
    tf32_tflops: float | None
    fp32_tflops: float

    def peak_tflops(self, precision: Precision) -> float:
        """The rate of products in a resolved precision. TF32 falls back to fp32, as torch does.

        AssertionError for bf16 on a GPU without it, which `resolve_precision` refuses.
        """
        if precision is Precision.bf16:
            assert self.bf16_tflops is not None
            return self.bf16_tflops
        rate = self.tf32_tflops if precision is Precision.tf32 else None
        return rate or self.fp32_tflops

    @property
    def precision(self) -> Precision:
        """What `engine.precision=auto` is on this GPU."""
        return Precision.tf32 if self.bf16_tflops is None else Precision.bf16


# Vendors' datasheets; where they give rates for sparse products only, half of those. A variant
# stands before the plain name, which a name of the variant contains too.
GPUS = (
    GPU("b200", 178, 2250.0, 1125.0, 75.0),
    GPU("gh200", 94, 989.0, 494.0, 67.0),
    GPU("h200-nvl", 139, 835.0, 417.0, 60.0),
    GPU("h200", 139, 989.0, 494.0, 67.0),
    GPU("h100-nvl", 93, 835.0, 417.0, 60.0),
    GPU("h100-pcie", 79, 756.0, 378.0, 51.0),
    GPU("h100", 79, 989.0, 494.0, 67.0),  # SXM
    GPU("a100-40gb", 39, 312.0, 156.0, 19.5),
    GPU("a100", 79, 312.0, 156.0, 19.5),
    GPU("l40s", 44, 362.0, 183.0, 91.6),
    GPU("l4", 22, 121.0, 60.0, 30.3),
    GPU("a40", 44, 149.7, 74.8, 37.4),
    GPU("a10g", 22, 70.0, 35.0, 31.5),
    GPU("a10", 22, 125.0, 62.5, 31.2),
    GPU("rtx-a6000", 47, 154.8, 77.4, 38.7),
    GPU("rtx-4090", 23, 165.0, 82.6, 82.6),
    GPU("rtx-3090", 23, 71.0, 35.6, 35.6),
    GPU("v100-16gb", 15, None, None, 15.7),
    GPU("v100", 31, None, None, 15.7),
    GPU("t4", 14, None, None, 8.1),
)
SLICES = {"mig", "laptop", "max", "vgpu"}  # words of names that are less than the whole card


def find_gpu(name: str) -> GPU | None:
    """The GPU of a `torch.cuda.get_device_name()` ("NVIDIA H100 80GB HBM3") or a short name.

    None if the table has none of that name.
    """
    words = set(re.split(r"[^a-z0-9]+", name.lower().replace("rtx", "rtx ")))
    if words & SLICES:
        return None
    return next((gpu for gpu in GPUS if words >= set(gpu.name.split("-"))), None)
