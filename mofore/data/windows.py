"""Which frames a clip is made of: seconds over the real frame times -> frame indices.

    |-- context (span) --|-- gap --|-- target (span) --|        span = frames / fps seconds

A clip shows the picture at `frames` moments 1 / fps apart; the picture at a moment is the last frame that
began by then, so variable frame rates are sampled at their true times. Nothing ever wraps around or reaches
past the end of a video:

- a gap that does not fit is drawn from the part of its range that does: [min, room], room = duration - 2 span;
- where even the smallest gap does not fit, the gap is the room itself (down to 0: target follows context);
- a video without room for two clips (room < 0) cannot be used: `fits` tells, and the caller leaves it out.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mofore.errors import UserError

EDGE = 1e-4  # seconds: time stamps are rounded, a moment on the edge of a frame belongs to it


class GapLaw(Enum):
    uniform = "uniform"
    log_uniform = "log_uniform"
    fixed = "fixed"  # always gap.max


@dataclass
class GapConfig:
    """Seconds from the end of the context to the start of a target."""

    law: GapLaw = GapLaw.uniform
    min: float = 0.0
    max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max:
            raise UserError(f"data.gap: need 0 <= min <= max, got min={self.min}, max={self.max} seconds.")
        if self.law is GapLaw.log_uniform and self.min <= 0:
            raise UserError("data.gap.min must be above 0 seconds for law=log_uniform.")


class Windows(NamedTuple):
    context: NDArray[np.int64]  # [T] frame indices
    targets: NDArray[np.int64]  # [K, T] frame indices
    gaps: NDArray[np.float32]  # [K] seconds, between the frames really shown


def span(frames: int, fps: float) -> float:
    """Seconds that a clip takes."""
    return frames / fps


def fits(duration: float, frames: int, fps: float, clips: int) -> bool:
    """Whether `clips` clips fit one after another into `duration` seconds."""
    return duration + EDGE >= clips * span(frames, fps)


def frames_at(times: NDArray[np.float64], moments: NDArray[np.float64]) -> NDArray[np.int64]:
    """The frame on show at each moment; times: f64 [n] ascending starts of the frames, in seconds."""
    return np.searchsorted(times, moments + EDGE, side="right") - 1


def draw_gaps(rng: np.random.Generator, gap: GapConfig, targets: int, room: float) -> NDArray[np.float64]:
    """f64 [targets] seconds, by the law, shrunk to the room as the module says."""
    high = min(gap.max, max(room, 0.0))
    low = min(gap.min, high)
    if gap.law is GapLaw.fixed or low == high:
        return np.full(targets, high)
    if gap.law is GapLaw.log_uniform:
        return np.exp(rng.uniform(np.log(low), np.log(high), targets))
    return rng.uniform(low, high, targets)


def draw_windows(
    rng: np.random.Generator, times: NDArray[np.float64], duration: float, frames: int, fps: float,
    targets: int, gap: GapConfig,
) -> Windows:  # fmt: skip
    """A context at a random place and `targets` targets after it. Needs room for two clips."""
    assert fits(duration, frames, fps, 2)
    length = span(frames, fps)
    gaps = draw_gaps(rng, gap, targets, duration - 2 * length)
    start = rng.uniform(0, max(duration - 2 * length - gaps.max(), 0.0))
    moments = start + np.arange(frames) / fps
    context = frames_at(times, moments)
    later = frames_at(times, moments + length + gaps[:, None])
    shown = times[later[:, 0]] - times[context[0]] - length
    return Windows(context, later, np.maximum(shown, 0).astype(np.float32))


def spread_clips(
    times: NDArray[np.float64], duration: float, views: int, frames: int, fps: float
) -> NDArray[np.int64]:
    """i64 [views, frames]: clips evenly spread from the start to the end. Needs room for one clip."""
    assert fits(duration, frames, fps, 1)
    starts = np.linspace(0, max(duration - span(frames, fps), 0.0), views)
    return frames_at(times, starts[:, None] + np.arange(frames) / fps)
