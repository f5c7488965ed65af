"""What a run reports: metrics.jsonl, one line per step, TensorBoard, wandb, and its progress.

Only rank 0 writes. A resumed run drops the lines of steps that it repeats, so each step is there
once.
"""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mofore.files import read_jsonl, write_jsonl
from mofore.types import Batch
from mofore.wandb_log import WandbLog

logger = logging.getLogger(__name__)
LINE_EVERY = 10.0  # seconds between two lines of progress in a file
# of the progress: metric -> name, format
PROGRESS = {
    "loss": ("loss", "{:.3g}"),
    "contrastive_accuracy": ("accuracy", "{:.3g}"),
    "effective_rank": ("rank", "{:.3g}"),
    "mfu": ("MFU", "{:.0%}"),
    "tflops_per_second": ("TFLOP/s", "{:.3g}"),
    "peak_memory_gib": ("GiB", "{:.3g}"),
    "data_wait_fraction": ("data wait", "{:.0%}"),
    "communication_fraction": ("communication", "{:.0%}"),
}


class MetricsLog:
    """metrics.jsonl and TensorBoard events of a run folder, from step `start` on; wandb if given.

    The context closes all of them.
    """

    def __init__(
        self, run_dir: Path, start: int, steps: int, wandb_log: WandbLog | None = None
    ) -> None:
        self.path, self.wandb_log = run_dir / "metrics.jsonl", wandb_log
        drop_lines_after(self.path, start)
        self._open(start)
        self.progress = ProgressBar(start, steps)
        self.latest: dict[str, float] = {}  # last known value of each metric

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.progress.close()
        self.board.close()
        self.file.close()
        if self.wandb_log:
            self.wandb_log.close(failed=kind is not None)

    def _open(self, start: int) -> None:
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, **values: float | None) -> None:
        """One step's numbers; `step` counts from 1.

        None: not measured at this step, left out. NaN and infinity become null in JSON.
        """
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        finite = {
            name: number if math.isfinite(number) else None for name, number in numbers.items()
        }
        self.file.write(json.dumps({"step": step} | finite) + "\n")
        self.file.flush()
        for name, number in numbers.items():
            self.board.add_scalar(name, number, step)
        if self.wandb_log:
            self.wandb_log.write(step, numbers)
        self.latest |= numbers
        self.progress.update(step, progress_numbers(self.latest))

    def rewind(self, step: int) -> None:
        """After a rollback: drop the lines of later steps."""
        self.file.close()
        self.board.close()
        drop_lines_after(self.path, step)
        self._open(step)
        self.progress.rewind(step)


class ProgressBar:
    """A bar on a terminal, a log line every few seconds in a file."""

    def __init__(self, start: int, steps: int) -> None:
        self.steps, self.line_time, self.line_step = steps, time.monotonic(), start
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=steps, initial=start, desc="pretrain", unit="step", dynamic_ncols=True
            )

    def update(self, step: int, numbers: dict[str, str]) -> None:
        """After a step, with the numbers to show, in their order."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(numbers, refresh=False)
        elif now - self.line_time >= LINE_EVERY or step == self.steps:
            speed = (step - self.line_step) / (now - self.line_time)  # since the previous line
            self.line_time, self.line_step = now, step
            text = "  ".join(f"{name} {number}" for name, number in numbers.items())
            left = tqdm.format_interval((self.steps - step) / speed)
            logger.info(
                "step %d/%d  %s  %.3g steps/s  %s left", step, self.steps, text, speed, left
            )

    def rewind(self, step: int) -> None:
        """Continue from this earlier step."""
        self.line_step = step
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def progress_numbers(metrics: dict[str, float]) -> dict[str, str]:
    """What the progress shows of the metrics; TFLOP/s where MFU is not known."""
    hidden = "tflops_per_second" if "mfu" in metrics else "mfu"
    return {
        name: form.format(metrics[metric])
        for metric, (name, form) in PROGRESS.items()
        if metric in metrics and metric != hidden
    }


def drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and a last line that a kill has torn."""
    if path.exists():
        write_jsonl(path, (line for line in read_jsonl(path) if line["step"] <= step))


class StepTimer:
    """Seconds per step, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.waited = 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; the time that it takes counts as waiting for data."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def lap(self) -> tuple[float, float]:
        """(seconds since the last lap, fraction of them spent waiting); starts again."""
        seconds, waited = time.perf_counter() - self.start, self.waited
        self.start, self.waited = time.perf_counter(), 0.0
        return seconds, waited / seconds


class StepCost(NamedTuple):
    """The FLOPs of a step, and what a device could do in its time."""

    flops: float  # of one step on all ranks, recomputed blocks not counted: VideoFlops.total * B
    world_size: int
    peak_flops: float | None  # of one device, per second; None: not known

    def metrics(self, seconds: float) -> dict[str, float | None]:
        """The speed of a step that took so long.

        tflops_per_second: of one rank. mfu: model FLOP utilisation, the observed throughput over
        that of the devices at their peak (Chowdhery et al. 2022, PaLM, appendix B):

            flops / (seconds * world_size * peak_flops)

        Only the model's matrix products count as FLOPs. Those that gradient checkpointing repeats
        do not, so it lowers MFU. mfu is None if the peak is not known.
        """
        speed = self.flops / (seconds * self.world_size)
        mfu = None if self.peak_flops is None else speed / self.peak_flops
        return {"mfu": mfu, "tflops_per_second": speed / 1e12}


def peak_memory_gib(device: torch.device) -> float:
    """The most memory that this rank has used since it started, in GiB; waits for nothing.

    On a GPU that of its tensors: the allocator holds somewhat more. On a CPU the resident memory
    of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / 2**20
