"""Parts of benchmarks.gpu: the largest micro-batch that fits, and how long a save blocks a step."""

import argparse
import functools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.checkpoint import save_plain, state_bytes
from benchmarks.gpu_measure import (
    GIB,
    describe_machine,
    free_memory,
    step_shape,
    synchronize,
    time_calls,
    unless_out_of_memory,
)
from benchmarks.gpu_results import Column, Report
from benchmarks.training_step import RepeatedStep, StepShape
from mofore.checkpoint.format import CheckpointConfig
from mofore.checkpoint.saver import Saver
from mofore.parallel.state import local_state, state_shapes
from mofore.profiling import random_batch

LARGEST, TINY_LARGEST = 1024, 6  # videos at which the search ends; a CPU's memory has no bound
SAVE_TARGET = 0.1  # of a plain save
ROUNDS = 2
EAGER = ("engine.precision=bf16", "engine.compile=never")


def largest_that_fits(fits: Callable[[int], bool], start: int, limit: int) -> int:
    """The largest number up to `limit` for which `fits` holds, to a sixteenth of it; 0: none.

    fits: holds up to some number, and not beyond.
    """
    good, bad = 0, limit + 1
    size = min(start, limit)
    while bad - good > max(1, good // 16):
        if fits(size):
            good = size
        else:
            bad = size
        size = min(2 * good, limit) if bad > limit else (good + bad) // 2
    return good


def micro_batch(options: argparse.Namespace, report: Report) -> None:
    """Doubles the micro-batch until memory runs out, then bisects."""
    device, shape = torch.device(options.device), step_shape(options)
    report.environment(describe_machine(device))
    limit = TINY_LARGEST if options.tiny else LARGEST
    report.note(f"{shape.backbone}, bf16, not compiled, ZeRO 0, default recipe")
    if device.type == "cpu":
        report.note(f"a CPU runs out of no memory: the search ends at {limit}")
    report.table(
        Column("checkpointing", "gradient checkpointing", 22),
        Column("micro_batch", "largest micro-batch", 19, "d"),
        Column("peak_gib", "peak GiB", 8, ".1f"),
        Column("samples_per_second", "samples/s", 9, ".1f"),
        Column("tried", "tried", 5, "d"),
    )
    for name, every in (("none", 0), ("every block", 1)):
        _search(report, device, shape, name, every, limit)
        free_memory()


def _search(
    report: Report,
    device: torch.device,
    shape: StepShape,
    name: str,
    every: int,
    limit: int,
) -> None:
    """One row. The engine is built once, for a batch of 2: its step takes a batch of any size."""
    overrides = (*EAGER, f"backbone.grad_checkpoint_every={every}")
    config = shape._replace(batch=2).config(*overrides)
    step = RepeatedStep(config)
    tried: list[int] = []

    def run(size: int, steps: int = 1) -> float:
        """Make the steps; seconds of the last one."""
        step.batch, begin = random_batch(config, size, device), 0.0
        for _ in range(steps):
            synchronize(device)
            begin = time.perf_counter()
            step()
        synchronize(device)
        return time.perf_counter() - begin

    def fits(size: int) -> bool:
        tried.append(size)
        return unless_out_of_memory(functools.partial(run, size)) is not None

    largest = largest_that_fits(fits, shape.batch, limit)
    if not largest:
        report.row(checkpointing=name, micro_batch=0, tried=len(tried), sizes=tried)
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = unless_out_of_memory(functools.partial(run, largest, steps=2))
    report.row(
        checkpointing=name,
        micro_batch=largest,
        peak_gib=torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None,
        samples_per_second=largest / seconds if seconds else None,
        tried=len(tried),
        sizes=tried,
    )


def save(options: argparse.Namespace, report: Report) -> None:
    """How long the Saver blocks a step, beside a plain save of the same state."""
    device, shape = torch.device(options.device), step_shape(options)
    shape = shape._replace(batch=max(2, shape.batch // 2))
    report.environment(describe_machine(device))
    step = RepeatedStep(shape.config(*EAGER))
    with tempfile.TemporaryDirectory() as folder:
        seconds = _time_saves(step, device, Path(folder))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    blocked, plain = medians["copy"] + medians["commit"], medians["plain save"]
    report.note(
        f"{shape.backbone}, state of {state_bytes(step.engine) / 1e9:.2f} GB, medians of {ROUNDS} "
        "rounds; each clock starts and ends with an idle device"
    )
    report.table(Column("what", "what", 40), Column("seconds", "seconds", 8, ".3f"))
    report.row(what="first save, which allocates its buffer", seconds=medians["first save"])
    report.row(what="save blocks the step: copy to the host", seconds=medians["copy"])
    report.row(what="save blocks the step: commit", seconds=medians["commit"])
    report.row(what="plain save (safetensors, synced, hashed)", seconds=plain)
    report.row(what="a step", seconds=medians["step"])
    report.row(what="a step while a file is written", seconds=medians.get("step while writing"))
    if not options.tiny:
        report.target(
            f"a save blocks a step for at most 0.1 of a plain save: {blocked / plain:.3f}",
            blocked / plain <= SAVE_TARGET,
        )


def _time_saves(step: RepeatedStep, device: torch.device, folder: Path) -> dict[str, list[float]]:
    engine, seconds = step.engine, defaultdict[str, list[float]](list)
    saver = Saver(folder / "run", CheckpointConfig(keep_last=1), state_shapes(engine))

    def clock(name: str, work: Callable[[], object]) -> None:
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        seconds[name].append(time.perf_counter() - begin)

    seconds["step"].append(time_calls(step, device, seconds=1.0).seconds)
    clock("first save", lambda: saver.save(0, local_state(engine), {}))
    saver.wait()
    for turn in range(1, ROUNDS + 1):
        clock("copy", functools.partial(saver.save, turn, local_state(engine), {}))
        while saver.writing:
            clock("step while writing", step)
        clock("commit", saver.commit)
        clock("plain save", lambda: save_plain(engine, folder / "plain.safetensors"))
        (folder / "plain.safetensors").unlink()
    saver.close()
    return seconds
