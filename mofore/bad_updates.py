"""Updates to skip: a non-finite loss or gradient, or a loss far above the recent ones.

    should_apply   before the last backward: the step's loss -> may it be applied?
    record         what happened -> applied, skipped, or rollback after too many skipped in a row

A rollback takes the same samples again from the last checkpoint, so a transient hardware fault is
undone to the last bit. If the same steps fail again, the samples or the recipe are at fault and the
run stops. Every rank sees the same numbers, so all decide alike.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from mofore.errors import UserError
from mofore.files import append_jsonl, read_jsonl
from mofore.parallel.collectives import get_rank
from mofore.settings import setting

MAD_TO_STD = 1.4826  # standard deviations per median absolute deviation, for normal numbers


@dataclass
class BadUpdateConfig:
    """Bad updates are skipped; too many in a row roll the run back, once for the same steps."""

    max_consecutive: int = setting(3, "Skipped updates in a row that roll back to the checkpoint.")
    spike_threshold: float | None = setting(
        None, "Robust deviations above the median that make a loss a spike; null allows any loss."
    )
    window: int = setting(100, "Recent losses that define the median and the deviation.")

    def __post_init__(self) -> None:
        spike_invalid = self.spike_threshold is not None and self.spike_threshold <= 0
        if self.max_consecutive < 1 or self.window < 10 or spike_invalid:
            raise UserError(
                f"bad_updates: max_consecutive={self.max_consecutive} must be at least 1, "
                f"window={self.window} at least 10 and spike_threshold={self.spike_threshold} "
                "above 0, or null."
            )


class UpdateOutcome(Enum):
    applied = "applied"
    skipped = "skipped"
    rollback = "rollback"  # skipped, and too many in a row


class BadUpdatePolicy:
    """Decides about one run's updates. `state` is saved with each checkpoint."""

    def __init__(self, config: BadUpdateConfig, state: dict[str, Any] | None = None) -> None:
        self.config = config
        self.restore(state or {"skipped": 0, "consecutive": 0, "recent": []})

    @property
    def state(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "consecutive": self.consecutive,
            "recent": list(self.recent),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.skipped: int = state["skipped"]  # updates skipped since step 0
        self.consecutive: int = state["consecutive"]  # the last ones of them, in a row
        self.recent = deque(state["recent"], maxlen=self.config.window)  # losses of applied updates
        self.reason = ""  # why the last update was skipped

    def should_apply(self, loss: float) -> bool:
        """Whether an update from this loss may be applied."""
        return math.isfinite(loss) and loss <= self.spike_limit

    @property
    def spike_limit(self) -> float:
        """Median + threshold * robust deviation (MAD) of the recent losses: above it is a spike."""
        threshold = self.config.spike_threshold
        if threshold is None or len(self.recent) < self.config.window // 2:
            return math.inf
        median = statistics.median(self.recent)
        deviation = MAD_TO_STD * statistics.median(abs(loss - median) for loss in self.recent)
        return median + threshold * deviation

    def record(self, loss: float, grad_norm: float) -> UpdateOutcome:
        """Record a step. Its gradient norm is not finite if the update was skipped."""
        if self.should_apply(loss) and math.isfinite(grad_norm):
            self.recent.append(loss)
            self.consecutive = 0
            return UpdateOutcome.applied
        self.skipped += 1
        self.consecutive += 1
        is_spike = math.isfinite(loss) and math.isfinite(self.spike_limit)
        self.reason = (
            f"loss {loss:.6g} above {self.spike_limit:.6g} "
            f"(bad_updates.spike_threshold={self.config.spike_threshold})"
            if is_spike
            else f"the loss or its gradient is not finite (loss {loss}, gradient norm {grad_norm})"
        )
        too_many = self.consecutive >= self.config.max_consecutive
        return UpdateOutcome.rollback if too_many else UpdateOutcome.skipped


class BadUpdateLog:
    """RUN/bad_updates.jsonl: the steps that a run was rolled back from, with their samples."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "bad_updates.jsonl"
        self.last_step = max((line["steps"][1] for line in read_jsonl(self.path)), default=0)

    def is_repeated(self, first: int) -> bool:
        """Whether the run was rolled back from this step, or a later one, before."""
        return first <= self.last_step

    def record(
        self, first: int, last: int, reason: str, samples: Callable[[int], list[str]]
    ) -> None:
        """Record failed steps first..last (from 1); `samples(step)` returns the video URIs."""
        self.last_step = max(self.last_step, last)
        if get_rank() == 0:
            uris = {step: samples(step) for step in range(first, last + 1)}
            append_jsonl(self.path, {"steps": [first, last], "reason": reason, "samples": uris})
