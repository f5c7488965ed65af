"""Parts of benchmarks.gpu: where the host waits for the GPU, and what a step's time goes into.

Two counts, because neither sees everything. torch.cuda.set_sync_debug_mode("warn") names the line
of a copy, an `item()` or an indexing that waits. torch.profiler counts CUDA's own synchronising
calls, also those of an event, of NCCL and of libraries, without a line.
"""

import argparse
import collections
import contextlib
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity

from benchmarks.gpu_measure import describe_machine, free_memory, step_shape, synchronize
from benchmarks.gpu_results import Column, Report
from benchmarks.training_step import RepeatedStep, StepShape
from mofore import trainer
from mofore.config import PretrainConfig, compose
from mofore.data.prepare import prepare
from mofore.data.synthetic import write_motion_videos
from mofore.launch.profiler import profile
from mofore.profiling import quiet_profiler
from mofore.train import train

WARM_UP, STEPS = 3, 4  # of the step alone


class Window(NamedTuple):
    """Steps of a run: lines are counted from `first` on, CUDA's calls from `second` to `last`."""

    first: int
    second: int
    last: int


# In the 20 steps of the first part the ranks are compared once; in the other ten they are not.
WINDOW, TINY_WINDOW = Window(21, 41, 51), Window(2, 4, 6)
SYNCHRONISING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
OURS = ("/mofore/", "/benchmarks/", "/launch/", "/evaluation/", "/deepspeed/", "/timm/")


class Synchronisations:
    """Where the host waited, between `start` and `stop`; does nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.places: collections.Counter[str] = collections.Counter()
        self.on_gpu = device.type == "cuda"
        self.catching = contextlib.ExitStack()

    def start(self) -> None:
        if not self.on_gpu:
            return
        self.catching.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = self._record
        torch.cuda.set_sync_debug_mode("warn")

    def stop(self) -> None:
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
        self.catching.close()

    def _record(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):  # not torch's word about the mode itself
            self.places[calling_line(traceback.extract_stack())] += 1


def calling_line(stack: traceback.StackSummary) -> str:
    """FILE:LINE function of the innermost frame of our code or of a library that it calls."""
    for frame in reversed(stack):
        if any(part in frame.filename for part in OURS) and "gpu_syncs" not in frame.filename:
            place = Path(frame.filename)
            return f"{place.parent.name}/{place.name}:{frame.lineno} {frame.name}"
    return "torch"


class Calls:
    """CUDA's synchronising calls between `start` and `stop`, by name; none on a CPU.

    own: those of the profiler itself, which are not counted.
    """

    def __init__(self, device: torch.device, own: Mapping[str, int] | None = None) -> None:
        self.counts: dict[str, int] = {}
        self.own = own or {}
        self.profile = None
        if device.type == "cuda":
            activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
            self.profile = torch.profiler.profile(activities=activities)

    def start(self) -> None:
        if self.profile:
            self.profile.start()

    def stop(self) -> None:
        if self.profile:
            self.profile.stop()
            seen = collections.Counter(event.name for event in self.profile.events())
            counts = {name: seen[name] - self.own.get(name, 0) for name in SYNCHRONISING}
            self.counts = {name: count for name, count in counts.items() if count > 0}


def profiler_calls(device: torch.device) -> dict[str, int]:
    """What a profile counts that nothing but the profiler calls."""
    quiet_profiler()
    calls = Calls(device)
    calls.start()
    torch.zeros(1, device=device)
    calls.stop()
    return calls.counts


def syncs(options: argparse.Namespace, report: Report) -> None:
    """The Trainer's whole loop, then the step alone at every ZeRO stage."""
    device, shape = torch.device(options.device), step_shape(options)
    if device.type == "cpu":
        report.note("a CPU has nothing to wait for: this part needs a GPU to count anything")
    shape = StepShape("vit_small", 16, 112, 8) if not options.tiny else shape
    report.environment(describe_machine(device))
    report.table(
        Column("what", "what", 28),
        Column("lines", "lines a step", 12, ".2f"),
        Column("calls", "CUDA calls a step", 17, ".2f"),
        Column("names", "their names", 40),
    )
    own = profiler_calls(device)
    with tempfile.TemporaryDirectory() as folder:
        window = WINDOW if not options.tiny else TINY_WINDOW
        _count_run(_run_config(Path(folder), window), window, device, own, report)
    for stage in range(4):  # 3 last: DeepSpeed then replaces torch's linear in this process
        _count_step(stage, shape, device, own, report)
        free_memory()


def _count_step(
    stage: int, shape: StepShape, device: torch.device, own: dict[str, int], report: Report
) -> None:
    """A row. Stage 0 is compiled, as by default; the others are not, which saves time here."""
    compiled = "auto" if stage == 0 else "never"
    overrides = (f"engine.zero_stage={stage}", f"engine.compile={compiled}")
    step = RepeatedStep(shape.config(*overrides))
    for _ in range(WARM_UP):
        step()
    waits, calls = Synchronisations(device), Calls(device, own)
    for counter in (waits, calls):
        synchronize(device)
        counter.start()
        for _ in range(STEPS):
            step()
        counter.stop()
    row = f"step, ZeRO {stage}{', compiled' if compiled == 'auto' else ''}"
    _print_counts(row, waits, STEPS, calls, STEPS, report)


def _run_config(folder: Path, window: Window) -> PretrainConfig:
    """A run on small videos that a worker decodes."""
    videos, data = folder / "videos", folder / "data"
    write_motion_videos(videos, textures=2)
    prepare(videos, data, workers=1)
    return compose(
        PretrainConfig,
        [
            "experiment=demo",
            f"data.manifest={data / 'manifest.parquet'}",
            "data.split=null",
            f"run_dir={folder / 'run'}",
            f"steps={window.last + 2}",
            "global_batch=8",
            "collapse.every=0",
            "checkpoint.every=1000",
            "engine.compile=never",
            "workers=1",
        ],
    )


def _count_run(
    config: PretrainConfig,
    window: Window,
    device: torch.device,
    own: dict[str, int],
    report: Report,
) -> None:
    """Count between two steps of a run, whose training step is replaced by one that counts."""
    waits, calls = Synchronisations(device), Calls(device, own)

    class CountedStep(trainer.TrainingStep):
        def __call__(self, step: int, *arguments: Any, **named: Any) -> Any:
            if step == window.first:
                waits.start()
            elif step == window.second:
                waits.stop()
                calls.start()
            elif step == window.last:
                calls.stop()
            return super().__call__(step, *arguments, **named)

    with replaced(trainer, "TrainingStep", CountedStep):
        train(config)
    steps, call_steps = window.second - window.first, window.last - window.second
    _print_counts("run of the Trainer", waits, steps, calls, call_steps, report)
    if device.type == "cuda":
        count = sum(calls.counts.values()) / call_steps
        report.target(f"at most one synchronisation a step of a run: {count:.1f}", count <= 1)


@contextlib.contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _print_counts(
    what: str, waits: Synchronisations, steps: int, calls: Calls, call_steps: int, report: Report
) -> None:
    """A row, and the lines that wait, most often first."""
    per_step = {name: count / call_steps for name, count in calls.counts.items()}
    report.row(
        what=what,
        lines=waits.places.total() / steps,
        calls=sum(per_step.values()),
        names=", ".join(f"{name} {count:g}" for name, count in per_step.items()),
        places=dict(waits.places),
    )
    for place, count in waits.places.most_common(10):
        report.note(f"    {count / steps:6.2f} a step: {place}")


def trace(options: argparse.Namespace, report: Report) -> None:
    """The table of `mofore profile`; its trace is kept."""
    shape = step_shape(options)
    report.environment(describe_machine(torch.device(options.device)))
    report.note(profile(shape.config(), options.out / "profile"))
