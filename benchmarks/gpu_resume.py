"""Parts of benchmarks.gpu: whether a resumed run equals an uninterrupted one, bit for bit.

    uninterrupted   steps 0 to 2n; its state after n steps and at the end is kept
    rolled back     the same process loads the state of step n and repeats steps n to 2n
    resumed         a new process loads it and repeats them. Its cache of compiled code is empty, as
                    on another machine

As `python -m benchmarks.gpu_resume` this makes one of the three and prints a line of JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_measure import TINY, describe_machine, time_calls
from benchmarks.gpu_results import Column, Report
from benchmarks.processes import run_json
from benchmarks.training_step import RepeatedStep, StepShape
from mofore.checkpoint.format import CheckpointConfig, checkpoints_dir
from mofore.checkpoint.reader import Checkpoint
from mofore.checkpoint.saver import Saver
from mofore.config import PretrainConfig
from mofore.parallel.engine import start_ranks
from mofore.parallel.state import local_state, state_shapes
from mofore.profiling import random_batch
from mofore.startup import load_checkpoint

HALF = 5  # steps before the state that is resumed from, and after it
SECONDS = 2.0  # of timed steps


def resume_config(tiny: bool, deterministic: bool) -> PretrainConfig:
    """ViT-S on clips of the usual size, in bf16, with a learning rate that rises at once."""
    shape = StepShape("vit_small", 16, 224, 8)
    if tiny:
        shape = StepShape("vit_tiny", 4, 64, 2, TINY)
    schedule = (f"steps={2 * HALF}", "optimizer.warmup_steps=1")
    chosen = ("engine.precision=bf16", f"engine.deterministic={str(deterministic).lower()}")
    return shape.config(*schedule, *chosen)


class Run:
    """The steps of one process."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.step = config, RepeatedStep(config)
        self.device = self.step.engine.device

    def make_steps(self, first: int, last: int) -> float:
        """Steps `first` to `last`, exclusive, each on its own batch; the last one's loss."""
        self.step.number, loss = first, torch.zeros(())
        for number in range(first, last):
            torch.manual_seed(number)
            self.step.batch = random_batch(self.config, self.config.global_batch, self.device)
            loss = self.step().losses.total
        return float(loss)

    def save(self, run_dir: Path, step: int) -> None:
        saver = Saver(run_dir, CheckpointConfig(), state_shapes(self.step.engine))
        saver.save(step, local_state(self.step.engine), {"bad_updates": {"skipped": 0}})
        saver.close()

    def load(self, run_dir: Path, step: int) -> None:
        load_checkpoint(self.step.engine, read_checkpoint(run_dir, step))


def read_checkpoint(run_dir: Path, step: int) -> Checkpoint:
    return Checkpoint(checkpoints_dir(run_dir) / f"step-{step}")


def make_uninterrupted(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """The uninterrupted and the rolled back steps; their last losses and samples per second."""
    run = Run(config)
    run.make_steps(0, HALF)
    run.save(folder / "uninterrupted", HALF)
    straight = run.make_steps(HALF, 2 * HALF)
    run.save(folder / "uninterrupted", 2 * HALF)
    run.load(folder / "uninterrupted", HALF)
    again = run.make_steps(HALF, 2 * HALF)
    run.save(folder / "rolled back", 2 * HALF)
    seconds = time_calls(run.step, run.device, SECONDS).seconds
    return {
        "uninterrupted": straight,
        "rolled back": again,
        "samples_per_second": config.global_batch / seconds,
    }


def make_resumed(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    run = Run(config)
    run.load(folder / "uninterrupted", HALF)
    loss = run.make_steps(HALF, 2 * HALF)
    run.save(folder / "resumed", 2 * HALF)
    return {"resumed": loss}


def compare_states(a: Checkpoint, b: Checkpoint) -> tuple[int, int, float]:
    """(tensors that differ in a bit, tensors, largest difference relative to a tensor's norm)."""
    differing, largest = 0, 0.0
    for name in a.shapes:
        left, right = a.tensor(name), b.tensor(name)
        if not torch.equal(left, right):
            differing += 1
            relative = (left - right).norm() / left.norm().clamp(min=1e-12)
            largest = max(largest, float(relative))
    return differing, len(a.shapes), largest


def resume(options: argparse.Namespace, report: Report) -> None:
    """With the default algorithms, of which some on GPUs add in any order."""
    _compare_runs(options, report, deterministic=False)


def deterministic(options: argparse.Namespace, report: Report) -> None:
    """With engine.deterministic=true; raises if a bit differs."""
    _compare_runs(options, report, deterministic=True)


def _compare_runs(options: argparse.Namespace, report: Report, deterministic: bool) -> None:
    config = resume_config(options.tiny, deterministic)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Before any use of the GPU: it sets variables that cuBLAS reads when it starts.
        device = start_ranks(config.engine)
        report.environment(describe_machine(device))
        facts = make_uninterrupted(config, folder)
        argv = [str(folder), *(["--tiny"] if options.tiny else [])]
        argv += ["--deterministic"] if deterministic else []
        empty = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        empty["TRITON_CACHE_DIR"] = str(folder / "triton")
        facts |= run_json("benchmarks.gpu_resume", *argv, environment=empty)
        report.note(
            f"engine.deterministic={str(deterministic).lower()}: {facts['samples_per_second']:.1f} "
            f"samples/s; states after {2 * HALF} steps, beside the uninterrupted run's"
        )
        report.table(
            Column("run", "run", 12),
            Column("loss", "last loss", 12, ".8f"),
            Column("differing", "tensors that differ", 19, "d"),
            Column("tensors", "of", 5, "d"),
            Column("largest", "largest relative difference", 27, ".1e"),
        )
        reference = read_checkpoint(folder / "uninterrupted", 2 * HALF)
        different = []
        for run in ("uninterrupted", "rolled back", "resumed"):
            state = read_checkpoint(folder / run, 2 * HALF)
            differing, tensors, largest = compare_states(reference, state)
            report.row(
                run=run, loss=facts[run], differing=differing, tensors=tensors, largest=largest
            )
            if differing:
                different.append(run)
    on_cpu = device.type == "cpu"
    if different and (deterministic or on_cpu):
        raise AssertionError(f"not equal bit for bit: {', '.join(different)}")


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_resume", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    options = parser.parse_args()
    config = resume_config(options.tiny, options.deterministic)
    print(json.dumps(make_resumed(config, options.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
