"""What a run reports: metrics.jsonl, one line per step, TensorBoard events, and its progress.

Only rank 0 writes. A resumed run drops the lines of steps that it repeats, so each step is there
once.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from mofore.files import read_jsonl, write_jsonl
from mofore.types import Batch

logger = logging.getLogger(__name__)
LINE_EVERY = 10.0  # seconds between two lines of progress in a file


class MetricsLog:
    """metrics.jsonl and TensorBoard events of a run folder, from step `start` on."""

    def __init__(self, run_dir: Path, start: int, steps: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        drop_lines_after(self.path, start)
        self._open(start)
        self.progress = ProgressBar(start, steps)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.board.close()
        self.file.close()

    def _open(self, start: int) -> None:
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, **values: Tensor | float) -> None:
        """One step's numbers; `step` counts from 1. NaN and infinity become null in JSON."""
        numbers = {name: float(value) for name, value in values.items()}
        finite = {
            name: number if math.isfinite(number) else None for name, number in numbers.items()
        }
        self.file.write(json.dumps({"step": step} | finite) + "\n")
        self.file.flush()
        for name, number in numbers.items():
            self.board.add_scalar(name, number, step)
        shown = {"loss": "loss", "accuracy": "contrastive_accuracy", "rank": "effective_rank"}
        self.progress.update(step, {key: f"{numbers[name]:.3g}" for key, name in shown.items()})

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
