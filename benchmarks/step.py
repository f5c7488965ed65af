"""The cost of a training step on a CPU, MoFore's and others': python -m benchmarks.step

    pip install transformers   # its V-JEPA 2 and VideoMAE; without it their rows are left out

`python -m benchmarks.gpu` measures GPUs.

All steps use the same backbone, clip and batch. They are timed in turn, so that every step sees
the same machine, and medians over rounds are reported. The floating-point operations of the matrix
products (torch's counter) are given as a share of the rate of a large matrix product, measured in
the same rounds. Memory is the kernel's count, in a separate process for each step. Weights and
clips are random.
"""

import argparse
import gc
import importlib.util
import json
import statistics
import sys
import time

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.baseline_steps import (
    CHECKPOINTED,
    DEFAULT,
    MOFORE,
    VIDEOMAE,
    VJEPA2,
    WHOLE,
    Step,
    build_step,
    collapse_measurement,
)
from benchmarks.processes import measure_memory, run_json
from benchmarks.training_step import StepShape
from mofore.config import PretrainConfig, compose

MATRIX_SIDE = 1536  # of the product that gives the machine's rate
PRODUCTS = 8  # per round; the fastest counts
PASSES = f"passes of {WHOLE}"


# torch's counter knows attention on GPUs only.
@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(grad, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def time_step(step: Step) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def print_memory(name: str, shape: StepShape) -> None:
    """In a separate process: print the memory of a step beyond what stays between steps."""
    step = build_step(name, shape)
    step()
    gc.collect()
    with measure_memory() as memory:
        result = step()  # a forward's loss keeps its activations until the memory is read
    print(json.dumps({"peak": memory.peak, "held": memory.held}))
    del result


def memory_mb(name: str, argv: list[str], key: str = "peak") -> float:
    """MiB of a step, measured in a new process."""
    return run_json("benchmarks.step", "--memory", name, *argv)[key] / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", default="vit_small", help="default: vit_small")
    parser.add_argument("--frames", type=int, default=16, help="per clip (default: 16)")
    parser.add_argument("--size", type=int, default=112, help="pixels of a side (default: 112)")
    parser.add_argument("--batch", type=int, default=4, help="videos per step (default: 4)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--memory", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of every MoFore step")
    options = parser.parse_args()
    if torch.cuda.is_available():
        parser.error("this measures CPUs: run benchmarks.gpu, or set CUDA_VISIBLE_DEVICES= (empty)")
    shape = StepShape(
        options.backbone, options.frames, options.size, options.batch, tuple(options.overrides)
    )
    if options.memory:
        print_memory(options.memory, shape)
        return 0
    names = [*MOFORE]
    if importlib.util.find_spec("transformers"):
        names += [VJEPA2, VIDEOMAE]
    else:
        print("transformers is not installed: V-JEPA 2 and VideoMAE are left out", file=sys.stderr)
    keys = ("backbone", "frames", "size", "batch")
    argv = [f"--{key}={getattr(shape, key)}" for key in keys] + options.overrides
    steps, flops = prepare_steps([*names, PASSES], shape)
    seconds = median_seconds(steps, options.rounds)
    print_steps(names, seconds, flops, shape, argv)
    print_overheads(seconds, shape, argv)
    return 0


def prepare_steps(names: list[str], shape: StepShape) -> tuple[dict[str, Step], dict[str, int]]:
    """Steps after their warm-up, and their floating-point operations, by name."""
    steps, flops = {}, {}
    for name in names:
        steps[name] = build_step(name, shape)
        steps[name]()
        with FlopCounterMode(display=False) as counter:
            steps[name]()
        flops[name] = counter.get_total_flops()
    return steps, flops


def median_seconds(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """By name of the step; "product" is the matrix product."""
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE)
    seconds: dict[str, list[float]] = {name: [] for name in [*steps, "product"]}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(time_step(step))
        products = [time_step(lambda: matrix @ matrix) for _ in range(PRODUCTS)]
        seconds["product"].append(min(products))
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_steps(
    names: list[str],
    seconds: dict[str, float],
    flops: dict[str, int],
    shape: StepShape,
    argv: list[str],
) -> None:
    """One line per step."""
    rate = 2 * MATRIX_SIDE**3 / seconds["product"]
    print(
        f"{shape.backbone}, {shape.batch} clips of {shape.frames} x {shape.size} x "
        f"{shape.size}, {torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a product "
        f"of {MATRIX_SIDE} x {MATRIX_SIDE}"
    )
    print(f"{'step':42} samples/s  TFLOP  of that rate  peak MB  x V-JEPA 2")
    for name in names:
        share = flops[name] / seconds[name] / rate
        relative = f"{seconds[VJEPA2] / seconds[name]:10.2f}" if VJEPA2 in seconds else ""
        print(
            f"{name:42} {shape.batch / seconds[name]:9.2f}  {flops[name] / 1e12:5.2f}  "
            f"{100 * share:11.0f}%  {memory_mb(name, argv):7.0f}  {relative}"
        )


def print_overheads(seconds: dict[str, float], shape: StepShape, argv: list[str]) -> None:
    """Optimizer and EMA, the collapse monitor, and gradient checkpointing."""
    beyond = 1 - seconds[PASSES] / seconds[WHOLE]
    print(
        f"optimizer, EMA and collectives: {100 * beyond:.1f}% of a step of {WHOLE!r} (beyond "
        "forward and backward)"
    )
    defaults = compose(PretrainConfig, ["data.manifest=none"])
    measurement = time_step(collapse_measurement(shape.config()))
    step = seconds[DEFAULT] * defaults.global_batch / shape.batch
    share = measurement / (defaults.collapse.every * step)
    print(
        f"collapse monitor: {measurement:.2f} s per measurement, {100 * share:.2f}% of the time at "
        f"one per {defaults.collapse.every} steps of {defaults.global_batch} videos"
    )
    slower = seconds[CHECKPOINTED] / seconds[WHOLE] - 1
    peak, peak_checkpointed = (
        memory_mb(f"passes of {name}", argv) for name in (WHOLE, CHECKPOINTED)
    )
    held, held_checkpointed = (
        memory_mb(f"forward of {name}", argv, "held") for name in (WHOLE, CHECKPOINTED)
    )
    print(
        f"gradient checkpointing: a step takes {100 * slower:.0f}% longer; activations kept for "
        f"backward: {held_checkpointed:.0f} MB instead of {held:.0f}, "
        f"{held / held_checkpointed:.1f} times less; peak of forward and backward: "
        f"{peak_checkpointed:.0f} MB instead of {peak:.0f}, "
        f"{peak / peak_checkpointed:.1f} times less"
    )


if __name__ == "__main__":
    sys.exit(main())
