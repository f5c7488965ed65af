"""The memory that `mofore plan` expects, against what is measured: python -m benchmarks.plan

Ranks: engines of DeepSpeed on CPU ranks, at every ZeRO stage. What a rank holds between two steps
is counted on the storages of all tensors; the peak of a step is the allocator's own record. Both
contain the batch.

Activations: what autograd saves in the forward pass of the model on this CPU, each storage once.

On a GPU, if there is one: torch.cuda.max_memory_allocated of a step of one rank.
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.processes import run_json
from mofore.config import PretrainConfig, compose
from mofore.memory import rank_memory
from mofore.models.objective import build_pretraining
from mofore.parallel.collectives import all_gather_objects, get_rank, get_world_size
from mofore.parallel.engine import start_ranks
from mofore.precision import Precision, autocast, resolve_precision
from mofore.profiling import random_batch
from mofore.startup import build_training_engine
from mofore.step import TrainingStep
from mofore.step_memory import GradientUse, SavedTensors, step_memory

MIB = 2**20
SIZE = ("backbone=vit_small", "data.frames=8", "data.size=112", "data.manifest=none")
VIDEOS = 2  # of a rank
GPU_SIZE = ("backbone=vit_large", "data.manifest=none")
GPU_VIDEOS = 8
STAGES = range(4)
CHECKPOINTING = "backbone.grad_checkpoint_every=1"


class Measured(NamedTuple):
    """Bytes of the rank that has most, planned and measured."""

    planned_held: int  # between two steps
    held: int
    planned_peak: int  # during a step
    peak: int


def measure_rank(config: PretrainConfig) -> Measured:
    """Two steps of a real engine on this rank; a collective."""
    before = live_bytes()
    device = start_ranks(config.engine)
    precision = resolve_precision(config.engine.precision, device)
    step = TrainingStep(config, build_training_engine(config, None, device))
    videos, accumulation = config.split_batch(get_world_size())
    batches = [random_batch(config, videos, device) for _ in range(accumulation)]
    step(0, batches)
    held = live_bytes() - before
    measure = _cuda_peak if device.type == "cuda" else _cpu_peak
    peak = held + measure(lambda: step(1, batches))
    planned = rank_memory(config, get_world_size(), precision)
    most = [max(values) for values in zip(*all_gather_objects((held, peak)), strict=True)]
    return Measured(planned.held, most[0], planned.peak, most[1])


def live_bytes() -> int:
    """Bytes of the storages of all tensors that Python knows."""
    gc.collect()
    sizes = {}
    for each in gc.get_objects():
        if issubclass(type(each), Tensor):
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None:
                    storage = tensor.untyped_storage()
                    sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _cpu_peak(work: Callable[[], object]) -> int:
    """Bytes that the allocator has handed out at most, beyond those before."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda each: each[0]):
        now += change
        peak = max(peak, now)
    return peak


def _cuda_peak(work: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_activations(config: PretrainConfig, videos: int) -> int:
    """Bytes that autograd saves in a forward pass of the model, in this process."""
    device = torch.device("cpu")
    precision = resolve_precision(config.engine.precision, device)
    model = build_pretraining(config.model(), config.seed)
    batch = random_batch(config, videos, device)
    with autocast(precision, device):
        targets = model(batch)
        saved = SavedTensors([*model.parameters(), *model.buffers(), *batch, *targets.keys])
        with saved.hooks():
            model(batch, targets, targets.keys)
    return saved.total


def print_ranks(options: argparse.Namespace) -> float:
    """A row for each stage and number of ranks. Returns the largest deviation of the plan."""
    print("stage  ranks  held MiB: plan  measured  ratio    peak MiB: plan  measured  ratio")
    worst = 0.0
    for stage in STAGES:
        for ranks in options.ranks:
            fixed = [f"engine.zero_stage={stage}", f"global_batch={VIDEOS * ranks}"]
            found = run_json("benchmarks.plan", "--rank", *fixed, *options.overrides, ranks=ranks)
            m = Measured(**found)
            ratios = m.planned_held / m.held, m.planned_peak / m.peak
            worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
            print(
                f"{stage:5}  {ranks:5}  {m.planned_held / MIB:14.1f}  {m.held / MIB:8.1f}  "
                f"{ratios[0]:5.3f}    {m.planned_peak / MIB:14.1f}  {m.peak / MIB:8.1f}  "
                f"{ratios[1]:5.3f}"
            )
    return worst


def print_activations(options: argparse.Namespace) -> float:
    """A row for each precision and checkpointing. Returns the largest deviation of the plan."""
    print("precision  checkpointing  activations MiB: plan  measured  ratio")
    worst = 0.0
    for precision in (Precision.fp32, Precision.bf16):
        for checkpointing in ((), (CHECKPOINTING,)):
            fixed = [*SIZE, f"global_batch={VIDEOS}", f"engine.precision={precision.name}"]
            config = compose(PretrainConfig, [*fixed, *checkpointing, *options.overrides])
            planned = step_memory(config, VIDEOS, precision, GradientUse(), on_gpu=False).saved
            measured = measure_activations(config, VIDEOS)
            worst = max(worst, abs(planned / measured - 1))
            print(
                f"{precision.name:9}  {'every block' if checkpointing else 'none':13}  "
                f"{planned / MIB:21.1f}  {measured / MIB:8.1f}  {planned / measured:5.3f}"
            )
    return worst


def print_gpu(options: argparse.Namespace) -> float:
    """A row for each way to run the blocks. Returns the largest deviation of the plan."""
    print(f"{torch.cuda.get_device_name()}: step of one rank, {GPU_VIDEOS} videos, bf16")
    print("blocks             peak MiB: plan  measured  ratio")
    worst = 0.0
    ways = {
        "eager": ("engine.compile=never",),
        "eager, checkpointed": ("engine.compile=never", CHECKPOINTING),
        "compiled": ("engine.compile=always",),
    }
    for name, overrides in ways.items():
        fixed = [*GPU_SIZE, f"global_batch={GPU_VIDEOS}", *overrides]
        m = Measured(**run_json("benchmarks.plan", "--rank", *fixed, *options.overrides, ranks=1))
        ratio = m.planned_peak / m.peak
        worst = max(worst, abs(ratio - 1)) if name != "compiled" else worst
        print(f"{name:19}  {m.planned_peak / MIB:12.1f}  {m.peak / MIB:8.1f}  {ratio:5.3f}")
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`"
    )
    options = parser.parse_args()
    if options.rank:
        measured = measure_rank(compose(PretrainConfig, [*SIZE, *options.overrides]))
        if get_rank() == 0:
            print(json.dumps(measured._asdict()))
        return 0
    worst = {}
    if torch.cuda.is_available():
        worst["GPU"] = print_gpu(options)
    else:
        worst["ranks"] = print_ranks(options)
    worst["activations"] = print_activations(options)
    for name, deviation in worst.items():
        print(f"largest deviation of the plan, {name}: {100 * deviation:.1f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
