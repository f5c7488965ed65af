"""Part of benchmarks.gpu: every ZeRO stage on one rank computes the same losses as a CPU.

The CPU's losses are computed beside, on the same machine, in fp32. Weights and batches come from
the same seeds. As `python -m benchmarks.gpu_stages` this prints the losses of one run as JSON.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.gpu_measure import TINY, describe_machine, free_memory
from benchmarks.gpu_results import Column, Report
from benchmarks.processes import run_json
from benchmarks.training_step import RepeatedStep, StepShape
from mofore.config import PretrainConfig
from mofore.parallel.engine import start_ranks
from mofore.profiling import random_batch
from mofore.types import Batch

BATCHES = 5  # different ones, in turn: the loss falls, so the curves are more than noise
# Largest difference of a step's loss, relative to it. fp32: to the CPU's. bf16: to stage 0's.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
# ZeRO stage, precision, engine.compile. Stage 3 comes last: DeepSpeed then replaces torch's linear
# for the rest of the process.
RUNS = [(stage, precision, "never") for precision in TOLERANCE for stage in range(3)]
RUNS += [(0, "bf16", "auto"), (3, "fp32", "never"), (3, "bf16", "never")]


def stage_config(tiny: bool, steps: int, *overrides: str) -> PretrainConfig:
    """ViT-S on clips so small that a CPU takes less than a minute."""
    shape = StepShape("vit_small", 8, 64, 8)
    if tiny:
        shape = StepShape("vit_tiny", 4, 64, 2, TINY)
    schedule = (f"steps={steps}", "optimizer.warmup_steps=5", "optimizer.lr=3e-4")
    return shape.config(*schedule, *overrides)


def losses(config: PretrainConfig) -> list[float]:
    """The loss of every step of a run on the same BATCHES for every configuration."""
    step = RepeatedStep(config)
    device = step.engine.device
    torch.manual_seed(0)
    batches = [
        random_batch(config, config.global_batch, torch.device("cpu")) for _ in range(BATCHES)
    ]
    on_device = [Batch(*(tensor.to(device) for tensor in batch)) for batch in batches]
    seen = []
    for number in range(config.steps):
        step.batch = on_device[number % BATCHES]
        seen.append(step().losses.total)
    return torch.stack(seen).tolist()


def largest_difference(values: list[float], reference: list[float]) -> float:
    """Of all steps, relative to the reference."""
    pairs = zip(values, reference, strict=True)
    return max(abs(value - expected) / abs(expected) for value, expected in pairs)


def stages(options: argparse.Namespace, report: Report) -> None:
    """All stages in fp32 beside the CPU, and in bf16 beside stage 0; raises if they differ."""
    report.environment(describe_machine(torch.device(options.device)))
    steps = 6 if options.tiny else 50
    argv = ["--steps", str(steps), *(["--tiny"] if options.tiny else [])]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    report.note(
        f"{steps} steps; largest difference of a loss, in fp32 to the CPU's, in bf16 to "
        f"stage 0's; allowed: {TOLERANCE['fp32']:g} and {TOLERANCE['bf16']:g}"
    )
    report.table(
        Column("stage", "stage", 5, "d"),
        Column("precision", "precision", 9),
        Column("compile", "compile", 7),
        Column("first", "first loss", 10, ".5f"),
        Column("last", "last loss", 10, ".5f"),
        Column("difference", "difference", 10, ".1e"),
        Column("within", "within", 6),
    )
    start_ranks(stage_config(options.tiny, steps).engine)  # sets the environment, once
    with ThreadPoolExecutor(1) as pool:
        on_cpu = pool.submit(run_json, "benchmarks.gpu_stages", *argv, environment=hidden)
        curves = {
            (stage, precision, compile): _free_losses(
                stage_config(
                    options.tiny,
                    steps,
                    f"engine.zero_stage={stage}",
                    f"engine.precision={precision}",
                    f"engine.compile={compile}",
                )
            )
            for stage, precision, compile in RUNS
        }
        reference = {"fp32": on_cpu.result()["losses"], "bf16": curves[0, "bf16", "never"]}
    different = []
    for (stage, precision, compile), curve in curves.items():
        difference = largest_difference(curve, reference[precision])
        within = difference <= TOLERANCE[precision]
        if not within:
            different.append(f"stage {stage}, {precision}, compile={compile}")
        report.row(
            stage=stage,
            precision=precision,
            compile=compile,
            first=curve[0],
            last=curve[-1],
            difference=difference,
            within="yes" if within else "NO",
            losses=curve,
        )
    if different:
        raise AssertionError(f"other losses than the reference: {'; '.join(different)}")


def _free_losses(config: PretrainConfig) -> list[float]:
    curve = losses(config)
    free_memory()
    return curve


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_stages", description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    curve = losses(stage_config(options.tiny, options.steps, "engine.precision=fp32"))
    print(json.dumps({"losses": curve}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
