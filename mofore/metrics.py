"""What a run says of itself: one line a step in metrics.jsonl, the same numbers for TensorBoard, a progress bar.

Only rank 0 writes. A resumed run drops the lines of steps that it takes again, so a step stands there once.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

LINE_EVERY = 10.0  # seconds between two lines of progress in a file


class MetricsLog:
    """metrics.jsonl and TensorBoard events of a run folder, from step `start` on."""

    def __init__(self, run_dir: Path, start: int, steps: int) -> None:
        self.path = run_dir / "metrics.jsonl"
        forget_after(self.path, start)
        self._open(start)
        self.bar = Progress(start, steps)

    def _open(self, start: int) -> None:
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, **values: Tensor | float) -> None:
        """One step's numbers; `step` counts from 1."""
        numbers = {name: float(value) for name, value in values.items()}
        # JSON has no word for what is not finite
        told = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        self.file.write(json.dumps({"step": step} | told) + "\n")
        self.file.flush()
        for name, number in numbers.items():
            self.board.add_scalar(name, number, step)
        shown = {"loss": "loss", "acc": "contrast_accuracy", "rank": "effective_rank"}
        self.bar.show(step, {short: f"{numbers[name]:.3g}" for short, name in shown.items()})

    def rewind(self, step: int) -> None:
        """The run goes back: drop the lines of later steps."""
        self.file.close()
        self.board.close()
        forget_after(self.path, step)
        self._open(step)
        self.bar.back(step)

    def close(self) -> None:
        self.bar.close()
        self.board.close()
        self.file.close()


class Progress:
    """A bar on a terminal; in a file, where a bar would be one endless line, a line every few seconds."""

    def __init__(self, start: int, steps: int) -> None:
        self.steps, self.last, self.at = steps, time.monotonic(), start
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=steps, initial=start, desc="pretrain", unit="step", dynamic_ncols=True)

    def show(self, step: int, numbers: dict[str, str]) -> None:
        """After a step: the numbers beside it, in their order."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix(numbers, refresh=False)
        elif now - self.last >= LINE_EVERY or step == self.steps:
            speed = (step - self.at) / (now - self.last)  # since the line before
            self.last, self.at = now, step
            said = "  ".join(f"{name} {number}" for name, number in numbers.items())
            left = tqdm.format_interval((self.steps - step) / speed)
            print(
                f"step {step}/{self.steps}  {said}  {speed:.3g} steps/s  {left} left",
                file=sys.stderr,
                flush=True,
            )

    def back(self, step: int) -> None:
        """The run goes back to this step."""
        self.at = step
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of later steps than `step`, and a last line that a kill has torn."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


class Stopwatch:
    """Seconds since the last look, and how many of them were spent waiting for data."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.waited = 0.0

    def wait(self, batches):
        """The next batch of an iterator, the wait for it counted."""
        before = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - before
        return batch

    def lap(self) -> tuple[float, float]:
        """(seconds, share of them spent waiting), and start again."""
        seconds, waited = time.perf_counter() - self.begin, self.waited
        self.begin, self.waited = time.perf_counter(), 0.0
        return seconds, waited / seconds
