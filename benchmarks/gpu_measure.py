"""What the parts of benchmarks.gpu share: the shape, the clock, memory, the card."""

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

import torch

from benchmarks.training_step import StepShape
from mofore.gpus import find_gpu

ROUNDS = 3
GIB = 2**30
TINY = ("backbone.depth=2", "backbone.embed_dim=48", "backbone.num_heads=3", "forecaster.depth=1")
T = TypeVar("T")


def step_shape(options: argparse.Namespace) -> StepShape:
    """The backbone, clip and batch that the options give."""
    if options.tiny:
        return StepShape("vit_tiny", 4, 64, 2, TINY)
    return StepShape(options.backbone, options.frames, options.size, options.batch)


class Timing(NamedTuple):
    first: float  # seconds of the first call, or until it has ended
    seconds: float  # of a call, the median of ROUNDS rounds
    peak: int | None  # bytes of the device's memory, the most at any time of a round


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_calls(
    call: Callable[[], object], device: torch.device, seconds: float, warm_up: int = 2
) -> Timing:
    """Time rounds of several calls, each of about `seconds` divided by ROUNDS.

    The calls of a round follow each other without waiting for the device, as in a run.
    """

    def round_of(count: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / count

    first = round_of(1)
    warm = min(round_of(1) for _ in range(warm_up))
    count = max(1, min(50, round(seconds / ROUNDS / warm)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    median = statistics.median(round_of(count) for _ in range(ROUNDS))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Timing(first, median, peak)


def free_memory() -> None:
    """Return the memory of what is no longer referenced; engines have reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unless_out_of_memory(work: Callable[[], T]) -> T | None:
    """The result of the work, or None if the device's memory did not suffice; then it is free."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # the traceback, which refers to the tensors, is gone only after this clause
    free_memory()
    return None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Card, driver's CUDA and the versions that the numbers depend on."""
    facts: dict[str, Any] = {"device": platform.processor() or platform.machine()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts = {"device": properties.name, "GiB": round(properties.total_memory / GIB, 1)}
        facts["cuda"] = torch.version.cuda
    facts |= {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("deepspeed", "timm", "transformers"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "none"
    return facts


def peak_tflops(device: torch.device) -> float | None:
    """The card's dense bf16 peak as its maker states it; None for an unknown device."""
    if device.type != "cuda":
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return gpu.bf16_tflops if gpu else None


def product_tflops(device: torch.device, side: int) -> float:
    """TFLOP/s of a product of two random bf16 matrices: what the device reaches in practice."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / time_calls(lambda: a @ b, device, seconds=0.5).seconds / 1e12
