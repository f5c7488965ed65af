"""What a step costs: FLOPs against the device's peak, the share of collectives, a batch to time.

`mofore/trace_costs.py` has the costs by kind of work.
"""

import contextlib
import os
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from mofore.config import PretrainConfig
from mofore.flops import flops_per_video
from mofore.gpus import find_gpu
from mofore.metrics import StepCost
from mofore.parallel.collectives import get_world_size
from mofore.precision import resolve_precision
from mofore.startup import empty_batch
from mofore.trace_costs import COLLECTIVE, exclusive_times
from mofore.types import Batch


class Communication:
    """The result of `measure_communication`; `fraction` is set when the context ends."""

    fraction: float | None = None  # of the time inside; None: no collective was seen


@contextlib.contextmanager
def measure_communication(device: torch.device) -> Iterator[Communication]:
    """Measure the share of the time inside that collectives take on this rank.

    Counts what runs beside computation too, and the waiting for slower ranks. On a GPU the host
    waits for the device before and after. Leaves nothing behind.
    """
    quiet_profiler()
    on_gpu, measured = device.type == "cuda", Communication()
    profiler = torch.autograd.profiler.profile(
        use_device="cuda" if on_gpu else None, use_kineto=True, use_cpu=not on_gpu
    )
    if on_gpu:
        torch.cuda.synchronize(device)
    with profiler:
        start = time.perf_counter()
        yield measured
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    # The raw events: to make Python objects of all operators takes as long as a small step.
    trace = profiler.kineto_results
    assert trace is not None
    events = [each for each in trace.events() if COLLECTIVE.match(each.name())]
    if events:
        first = min(each.start_ns() for each in events)
        spans = [(each.start_ns() - first, each.end_ns() - first) for each in events]
        (nanoseconds, _) = exclusive_times([spans], max(stop for _, stop in spans))
        measured.fraction = min(1.0, nanoseconds / 1e9 / seconds)


def quiet_profiler() -> None:
    """Before the first profile: otherwise kineto writes lines to stderr at each start and stop."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def build_step_cost(config: PretrainConfig, device: torch.device) -> StepCost:
    """The FLOPs of the run's steps, and the device's peak in the run's precision.

    The peak is `engine.peak_tflops`, or that of the GPU's data sheet.
    """
    peak = config.engine.peak_tflops
    if peak is None and device.type == "cuda":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        peak = gpu.peak_tflops(resolve_precision(config.engine.precision, device)) if gpu else None
    flops = flops_per_video(config).total * config.global_batch
    return StepCost(flops, get_world_size(), None if peak is None else peak * 1e12)


def random_batch(config: PretrainConfig, videos: int, device: torch.device) -> Batch:
    """Random pixels and visible tokens in the run's shapes; gaps of half a second."""
    batch = empty_batch(config, videos, device)

    def draw(tokens: Tensor) -> Tensor:
        """Other tokens, as many: i64 [B, M], ascending."""
        orders = torch.rand(videos, config.tokens, device=device).argsort(dim=1)
        return orders[:, : tokens.shape[1]].sort(dim=1).values

    return batch._replace(
        context=torch.randint_like(batch.context, 256),
        targets=torch.randint_like(batch.targets, 256),
        gaps=batch.gaps + 0.5,
        visible=draw(batch.visible),
        teacher_visible=draw(batch.teacher_visible),
    )
