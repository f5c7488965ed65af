"""Parts of benchmarks.gpu: how fast the step is, beside others, with fewer tokens, by precision."""

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline_steps import (
    DEFAULT,
    VIDEOMAE,
    VJEPA2,
    BaselineStep,
    videomae_step,
    vjepa2_step,
)
from benchmarks.gpu_measure import (
    GIB,
    Timing,
    describe_machine,
    free_memory,
    peak_tflops,
    product_tflops,
    step_shape,
    synchronize,
    time_calls,
    unless_out_of_memory,
)
from benchmarks.gpu_results import Column, Report, read_part
from benchmarks.training_step import RepeatedStep, StepShape
from mofore.compilation import compiled_graphs
from mofore.flops import flops_per_video
from mofore.parallel.engine import start_ranks
from mofore.precision import Precision, set_matmul_precision

SECONDS = 3.0  # of timed steps, per row
COMPILED = ("engine.precision=bf16", "engine.compile=auto")
EAGER = ("engine.precision=bf16", "engine.compile=never")
TOKENS = {
    "MoFore, a quarter of the tokens": ["data.token_keep_ratio=0.25"],
    "MoFore, a tenth; the teacher's a quarter": [
        "data.token_keep_ratio=0.1",
        "teacher.token_keep_ratio=0.25",
    ],
}
COLUMNS = (
    Column("step", "step", 40),
    Column("precision", "precision", 9),
    Column("compiled", "compiled", 8),
    Column("batch", "batch", 5, "d"),
    Column("samples_per_second", "samples/s", 9, ".1f"),
    Column("tflop", "TFLOP/video", 11, ".2f"),
    Column("tflops", "TFLOP/s", 7, ".0f"),
    Column("mfu", "MFU", 6, ".1%"),
    Column("peak_gib", "peak GiB", 8, ".1f"),
    Column("start_seconds", "start s", 7, ".1f"),  # until the first step's end, with compilation
)
T = TypeVar("T")


class SpeedTable:
    """Times one step after the other, each with the device to itself, a row for each."""

    def __init__(self, options: argparse.Namespace, report: Report) -> None:
        self.device, self.report = torch.device(options.device), report
        self.shape = step_shape(options)
        self.peak = peak_tflops(self.device)
        report.environment(describe_machine(self.device))
        report.note(
            f"{self.shape.backbone}, clips of {self.shape.frames} x {self.shape.size} x "
            f"{self.shape.size}; MFU of the peak of {self.peak or 'an unknown number of'} TFLOP/s "
            "in dense bf16"
        )
        self.seconds = 0.0 if options.tiny else SECONDS
        side = 64 if options.tiny else 8192
        rate = product_tflops(self.device, side)
        report.note(f"a product of {side} x {side} matrices in bf16: {rate:.3g} TFLOP/s")
        report.table(*COLUMNS)

    def mofore(self, name: str, precision: str, *overrides: str) -> dict[str, Any] | None:
        """A row of MoFore's step; None if not even one pair of videos fits."""

        def work(shape: StepShape) -> tuple[bool, Timing]:
            start = time.perf_counter()
            step = RepeatedStep(shape.config(*overrides))
            built = time.perf_counter() - start
            timing = time_calls(step, self.device, self.seconds)
            return is_compiled(step.engine.module), timing._replace(first=built + timing.first)

        fitting = self._largest(work)
        if fitting is None:
            self.report.note(f"{name}, {precision}: out of memory")
            return None
        shape, (compiled, timing) = fitting
        flops = flops_per_video(shape.config(*overrides)).total
        return self._row(name, precision, compiled, shape, timing, flops)

    def baseline(
        self, name: str, build: Callable[[StepShape, torch.device, Precision], BaselineStep]
    ) -> dict[str, Any] | None:
        """Two rows, in bf16: as transformers runs it, and with its layers compiled in place.

        Returns the faster one; None if not even one pair of videos fits.
        """

        def work(shape: StepShape) -> tuple[float, list[Timing]]:
            start = time.perf_counter()
            torch.manual_seed(0)
            step = build(shape, self.device, Precision.bf16)
            step()
            synchronize(self.device)
            first = time.perf_counter() - start
            with FlopCounterMode(display=False) as counter:
                step()
            timings = [time_calls(step, self.device, self.seconds)._replace(first=first)]
            if self.device.type == "cuda":
                step.compile()
                timings.append(time_calls(step, self.device, self.seconds))
            return counter.get_total_flops() / shape.batch, timings

        set_matmul_precision(Precision.bf16)
        fitting = self._largest(work)
        if fitting is None:
            self.report.note(f"{name}: out of memory")
            return None
        shape, (flops, timings) = fitting
        rows = [
            self._row(name, "bf16", compiled, shape, timing, flops)
            for compiled, timing in zip((False, True), timings, strict=False)
        ]
        return max(rows, key=lambda row: row["samples_per_second"])

    def _largest(self, work: Callable[[StepShape], T]) -> tuple[StepShape, T] | None:
        """The result of the work at the given batch, or at the first half of it that fits."""
        batch = self.shape.batch
        while batch >= 2:
            shape = self.shape._replace(batch=batch)
            result = unless_out_of_memory(functools.partial(work, shape))
            free_memory()
            if result is not None:
                return shape, result
            batch //= 2
        return None

    def _row(
        self,
        name: str,
        precision: str,
        compiled: bool,
        shape: StepShape,
        timing: Timing,
        flops: float,
    ) -> dict[str, Any]:
        """flops: of one video."""
        rate = shape.batch / timing.seconds
        row = {
            "step": name,
            "precision": precision,
            "compiled": "yes" if compiled else "no",
            "batch": shape.batch,
            "samples_per_second": rate,
            "tflop": flops / 1e12,
            "tflops": rate * flops / 1e12,
            "mfu": rate * flops / 1e12 / self.peak if self.peak else None,
            "peak_gib": timing.peak / GIB if timing.peak else None,
            "start_seconds": timing.first,
        }
        self.report.row(**row, step_seconds=timing.seconds, graphs=compiled_graphs())
        return row


def is_compiled(model: nn.Module) -> bool:
    """Whether a block is compiled in place; False if compiling was off or has failed."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def speed(options: argparse.Namespace, report: Report) -> None:
    """The default recipe beside V-JEPA 2 and VideoMAE, in bf16, eager and compiled."""
    table = SpeedTable(options, report)
    ours = table.mofore(DEFAULT, "bf16", *COMPILED)
    if ours and ours["mfu"] and not options.tiny:
        mfu = ours["mfu"]
        report.target(f"MFU of {DEFAULT!r}, bf16, compiled, at least 40%: {mfu:.1%}", mfu >= 0.4)
    installed = importlib.util.find_spec("transformers") is not None
    if not installed:
        report.note("transformers is not installed: V-JEPA 2 and VideoMAE are left out")
    theirs = table.baseline(VJEPA2, vjepa2_step) if installed else None
    if ours and theirs and not options.tiny:
        ratio = ours["samples_per_second"] / theirs["samples_per_second"]
        report.target(f"samples/s, at least 2 x V-JEPA 2's: {ratio:.2f} x", ratio >= 2)
    table.mofore(DEFAULT, "bf16", *EAGER)
    if installed:
        table.baseline(VIDEOMAE, videomae_step)


def tokens(options: argparse.Namespace, report: Report) -> None:
    """The step with fewer tokens, in bf16 and compiled."""
    table = SpeedTable(options, report)
    for name, overrides in TOKENS.items():
        table.mofore(name, "bf16", *COMPILED, *overrides)


def precision(options: argparse.Namespace, report: Report) -> None:
    """The default recipe in TF32 and fp32, eager."""
    table = SpeedTable(options, report)
    for name in ("tf32", "fp32"):
        table.mofore(DEFAULT, name, f"engine.precision={name}", "engine.compile=never")


def deterministic_cost(options: argparse.Namespace, report: Report) -> None:
    """The default recipe with engine.deterministic=true, beside the row of the part `speed`."""
    overrides = (*COMPILED, "engine.deterministic=true")
    # Before the first product: cuBLAS reads the variable that this sets once.
    start_ranks(step_shape(options).config(*overrides).engine)
    exact = SpeedTable(options, report).mofore(f"{DEFAULT}, deterministic", "bf16", *overrides)
    usual = default_rate(options.out)
    if exact and usual:
        cost = 1 - exact["samples_per_second"] / usual
        report.note(f"engine.deterministic=true costs {cost:.1%} of the {usual:.1f} samples/s")


def default_rate(out: Path) -> float | None:
    """Samples per second of the default recipe in the part `speed`; None if it has not run."""
    for row in (read_part(out, "speed").get("tables") or [[]])[0]:
        if row["step"] == DEFAULT:  # the first one is in bf16 and compiled
            return row["samples_per_second"]
    return None
