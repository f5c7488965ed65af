"""Updates that must not be made: a loss or gradient that is not finite, a loss far above those before.

    allows   the loss of the whole step, before the last backward -> whether the update may be made
    note     what became of it -> taken, skipped, or so many skipped in a row that the run must go back

A run that goes back takes the same samples again from its last checkpoint: what a fault of the hardware did is
then undone to the last bit. If the same steps fail again, the samples or the recipe are at fault, and it stops.
Every rank is asked the same of the same numbers, so all decide alike.
"""

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mofore.distributed import rank
from mofore.errors import UserError

MAD = 1.4826  # standard deviations in a median absolute deviation, of normal numbers


@dataclass
class GuardConfig:
    """Bad updates are skipped; `skips` in a row take the run back to its last checkpoint, once for the same steps."""

    skips: int = 3  # skipped updates in a row before the run goes back
    spike: float | None = (
        None  # deviations above the median of the last losses that count as bad; None: any loss
    )
    window: int = 100  # losses that a spike is judged by

    def __post_init__(self) -> None:
        if self.skips < 1 or self.window < 10 or (self.spike is not None and self.spike <= 0):
            raise UserError(
                f"guard: need skips={self.skips} of at least 1, window={self.window} of at least 10 and "
                f"spike={self.spike} above 0, or null."
            )


class Fate(Enum):
    """What became of an update."""

    taken = "taken"
    skipped = "skipped"
    back = "back"  # skipped, and one too many


class Guard:
    """The judge of one run's updates. `state` is saved with each checkpoint."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None) -> None:
        self.config = config
        self.restore(state or {"skipped": 0, "streak": 0, "recent": []})

    @property
    def state(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "streak": self.streak, "recent": list(self.recent)}

    def restore(self, state: dict[str, Any]) -> None:
        self.skipped: int = state["skipped"]  # updates skipped since step 0
        self.reason = ""  # why the last was skipped
        self.streak: int = state["streak"]  # of them, how many just now in a row
        self.recent = deque(state["recent"], maxlen=self.config.window)

    def allows(self, loss: float) -> bool:
        """Whether an update from this loss may be made."""
        return math.isfinite(loss) and loss <= self.ceiling

    @property
    def ceiling(self) -> float:
        """The largest loss that is no spike: median + spike * robust deviation of the last losses (MAD)."""
        if self.config.spike is None or len(self.recent) < self.config.window // 2:
            return math.inf
        middle = statistics.median(self.recent)
        spread = MAD * statistics.median(abs(loss - middle) for loss in self.recent)
        return middle + self.config.spike * spread

    def note(self, loss: float, norm: float) -> Fate:
        """After the step: the loss that was asked about, and the norm of the gradient that came of it."""
        if self.allows(loss) and math.isfinite(norm):
            self.recent.append(loss)
            self.streak = 0
            return Fate.taken
        self.skipped += 1
        self.streak += 1
        self.reason = (
            f"loss {loss:.6g}, more than {self.ceiling:.6g} (guard.spike={self.config.spike})"
            if math.isfinite(loss) and math.isfinite(self.ceiling)
            else f"the loss or its gradient is not finite (loss {loss}, norm {norm})"
        )
        return Fate.skipped if self.streak < self.config.skips else Fate.back


class BadSteps:
    """RUN/bad_steps.jsonl: the windows of steps that a run went back from, with the samples that they saw."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "bad_steps.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.last = max((json.loads(line)["steps"][1] for line in lines), default=0)

    def recurs(self, first: int) -> bool:
        """Whether the run has gone back from this step, or a later one, before."""
        return first <= self.last

    def record(self, first: int, last: int, reason: str, samples: Callable[[int], list[str]]) -> None:
        """Steps first..last (counted from 1) failed; `samples(step)` names the videos of one."""
        self.last = max(self.last, last)
        if rank() == 0:
            seen = {step: samples(step) for step in range(first, last + 1)}
            with self.path.open("a") as file:
                file.write(json.dumps({"steps": [first, last], "reason": reason, "samples": seen}) + "\n")
                file.flush()
                os.fsync(file.fileno())
