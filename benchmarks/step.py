"""One training step, beside those of others on the same backbone, clip and batch: python -m benchmarks.step

    pip install transformers   # its V-JEPA 2 and VideoMAE pretraining steps; without it their rows are left out

Every contender makes a step in turn, so that all see the same machine; medians of the rounds are reported, with
the matrix products of each step (torch's own counter) as a share of the rate that a large product reaches in the
same rounds. Memory is the kernel's count, in a process of its own for each contender. Weights are random and
clips are noise: what is measured is time.
"""

import argparse
import gc
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

from benchmarks.baseline_steps import OTHERS, OURS, Step, build_step, config_of, look
from benchmarks.processes import as_user_error, peak_of
from mofore.config import PretrainConfig, compose

SIDE = 1536  # of the matrices whose product gives the machine's rate


# torch's counter knows attention on a GPU, and not on a CPU
@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_flop_count(query, key, value)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(grad, query, key, value, *_, out_shape=None, **__) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def seconds(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def memory(name: str, options: argparse.Namespace) -> None:
    """Run in a process of its own: print the bytes that a step takes beyond what stays between steps."""
    step = build_step(name, options)
    step()
    gc.collect()
    with peak_of() as peak:
        result = step()  # held until the memory is read: with it, what a backward would need
    print(json.dumps({"bytes": peak.bytes, "kept": peak.kept}))
    del result


def _memory(name: str, words: list[str], what: str = "bytes") -> float:
    return as_user_error("benchmarks.step", "--memory", name, *words)[what] / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", default="vit_small")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`")
    options = parser.parse_args()
    if options.memory:
        memory(options.memory, options)
        return 0
    names = [*OURS]
    try:
        import transformers  # noqa: F401

        names += OTHERS
    except ImportError:
        print(
            "transformers is not installed: V-JEPA 2 and VideoMAE are left out (pip install transformers)"
        )
    whole, saved = "ours, all tokens", "ours, all tokens, checkpointing"
    passes = f"passes of {whole}"
    steps, flops = {}, {}
    for name in [*names, passes]:
        steps[name] = build_step(name, options)
        steps[name]()
        with FlopCounterMode(display=False) as counter:
            steps[name]()
        flops[name] = counter.get_total_flops()
    matrix = torch.randn(SIDE, SIDE)
    took: dict[str, list[float]] = {name: [] for name in [*steps, "rate"]}
    for _ in range(options.rounds):
        for name, step in steps.items():
            took[name].append(seconds(step))
        took["rate"].append(min(seconds(lambda: matrix @ matrix) for _ in range(8)))
    middle = {name: statistics.median(times) for name, times in took.items()}
    rate = 2 * SIDE**3 / middle["rate"]
    words = [
        f"--{key}={getattr(options, key)}" for key in ("backbone", "frames", "size", "batch")
    ] + options.words
    vjepa = middle.get(OTHERS[0])
    print(
        f"{options.backbone}, {options.batch} clips of {options.frames} x {options.size} x {options.size}, "
        f"{torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a product of {SIDE} x {SIDE}"
    )
    print(f"{'step':38} samples/s  TFLOP  of the rate  peak MB  x V-JEPA 2")
    for name in names:
        share = flops[name] / middle[name] / rate
        times = f"{vjepa / middle[name]:10.2f}" if vjepa else ""
        print(
            f"{name:38} {options.batch / middle[name]:9.2f}  {flops[name] / 1e12:5.2f}  {100 * share:10.0f}%"
            f"  {_memory(name, words):7.0f}  {times}"
        )
    print(
        f"beyond forward and backward: {100 * (1 - middle[passes] / middle[whole]):.1f}% of a step (optimizer, EMA, "
        f"agreement), for {whole!r}"
    )
    step = look(config_of(options, options.words))
    took_look, plan = seconds(step), compose(PretrainConfig, ["data.manifest=none"])
    whole_step = middle["ours, default recipe"] * plan.global_batch / options.batch
    print(
        f"a look for collapse takes {took_look:.2f} s: {100 * took_look / (plan.collapse.every * whole_step):.2f}% of the time, "
        f"every {plan.collapse.every} steps of {plan.global_batch} videos"
    )
    peaks = [_memory(f"passes of {name}", words) for name in (whole, saved)]
    kept = [_memory(f"forward of {name}", words, "kept") for name in (whole, saved)]
    print(
        f"gradient checkpointing: a step takes {100 * (middle[saved] / middle[whole] - 1):.0f}% longer; activations that "
        f"wait for backward: {kept[1]:.0f} MB instead of {kept[0]:.0f}, {kept[0] / kept[1]:.1f} times less; the peak of both "
        f"passes: {peaks[1]:.0f} MB instead of {peaks[0]:.0f}, {peaks[0] / peaks[1]:.1f} times less"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
