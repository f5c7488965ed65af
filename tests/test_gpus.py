"""GPUs are found by the names that CUDA gives them."""

import pytest

from mofore.gpus import GPUS, find_gpu


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("H100", "h100"),
        ("rtx4090", "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H20", None),
        ("cpu", None),
    ],
)
def test_gpus_by_name(name: str, found: str | None) -> None:
    gpu = find_gpu(name)
    assert (gpu and gpu.name) == found


def test_every_gpu_is_found_by_its_own_name() -> None:
    for gpu in GPUS:
        assert find_gpu(gpu.name) == gpu
        assert gpu.peak_tflops(gpu.precision) >= gpu.fp32_tflops
