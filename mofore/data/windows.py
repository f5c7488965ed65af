"""Choose the frames of clips: times in seconds -> frame indices.

    |-- context clip --|-- gap --|-- target clip --|        a clip takes frames / fps seconds

A clip samples the video at `frames` times 1 / fps apart. The frame at a time is the last one that
starts no later than it, so variable frame rates are sampled at their true times. Indices never wrap
around or exceed the video:

- room = duration - 2 clips is the longest gap that fits; gaps are drawn from [min, room] if
  room < max;
- if room < min, the gap is room, down to 0 (the target follows the context directly);
- a video with room < 0 cannot be used: `clips_fit` checks it, and the caller drops the video.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mofore.errors import UserError
from mofore.settings import setting

# Seconds. Timestamps are rounded: a time just before the start of a frame counts as that frame's.
TIME_TOLERANCE = 1e-4


class GapDistribution(Enum):
    """Distribution of gaps between `gap.min` and `gap.max`; `fixed` is always `gap.max`."""

    uniform = "uniform"
    log_uniform = "log_uniform"
    fixed = "fixed"


@dataclass
class GapConfig:
    """Seconds from the end of the context to the start of a target. Raises UserError."""

    distribution: GapDistribution = setting(
        GapDistribution.uniform, "Distribution of the gap; fixed always takes data.gap.max."
    )
    min: float = setting(0.0, "Shortest gap from context to target, in seconds.")
    max: float = setting(1.0, "Longest gap from context to target, in seconds.")

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max:
            raise UserError(
                f"data.gap: need 0 <= min <= max, got min={self.min}, max={self.max} seconds."
            )
        if self.distribution is GapDistribution.log_uniform and self.min <= 0:
            raise UserError("data.gap.min must be above 0 seconds for distribution=log_uniform.")


class Windows(NamedTuple):
    """Frame indices of a context and its K targets, and the gaps between them."""

    context: NDArray[np.int64]  # [T] frame indices
    targets: NDArray[np.int64]  # [K, T] frame indices
    gaps: NDArray[np.float32]  # [K] seconds, measured between the sampled frames


def clip_seconds(frames: int, fps: float) -> float:
    """Duration of a clip in seconds."""
    return frames / fps


def clips_fit(duration: float, frames: int, fps: float, clips: int) -> bool:
    """Whether `clips` consecutive clips fit into `duration` seconds."""
    return duration + TIME_TOLERANCE >= clips * clip_seconds(frames, fps)


def frames_at(times: NDArray[np.float64], sampled: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the frame shown at each of the `sampled` times, i64 of the same shape.

    times: f64 [n] ascending start times of the frames. Both in seconds.
    """
    return np.searchsorted(times, sampled + TIME_TOLERANCE, side="right") - 1


def draw_gaps(
    rng: np.random.Generator, gap: GapConfig, targets: int, room: float
) -> NDArray[np.float64]:
    """Gaps f64 [targets] in seconds, limited to `room` seconds as the module describes."""
    high = min(gap.max, max(room, 0.0))
    low = min(gap.min, high)
    if gap.distribution is GapDistribution.fixed or low == high:
        return np.full(targets, high)
    if gap.distribution is GapDistribution.log_uniform:
        return np.exp(rng.uniform(np.log(low), np.log(high), targets))
    return rng.uniform(low, high, targets)


def draw_windows(
    rng: np.random.Generator,
    times: NDArray[np.float64],
    duration: float,
    frames: int,
    fps: float,
    targets: int,
    gap: GapConfig,
) -> Windows:
    """A context at a random time and `targets` targets after it.

    times: f64 [n] start times of the frames; duration: of the video; both in seconds. The video
    must have room for two clips.
    """
    assert clips_fit(duration, frames, fps, 2)
    length = clip_seconds(frames, fps)
    gaps = draw_gaps(rng, gap, targets, duration - 2 * length)
    start = rng.uniform(0, max(duration - 2 * length - gaps.max(), 0.0))
    sampled = start + np.arange(frames) / fps
    context = frames_at(times, sampled)
    later = frames_at(times, sampled + length + gaps[:, None])
    measured = times[later[:, 0]] - times[context[0]] - length
    return Windows(context, later, np.maximum(measured, 0).astype(np.float32))


def evenly_spaced_clips(
    times: NDArray[np.float64], duration: float, views: int, frames: int, fps: float
) -> NDArray[np.int64]:
    """Frame indices i64 [views, frames] of clips evenly spaced from the start to the end.

    times: f64 [n] start times of the frames; duration: of the video; both in seconds. The video
    must have room for one clip.
    """
    assert clips_fit(duration, frames, fps, 1)
    starts = np.linspace(0, max(duration - clip_seconds(frames, fps), 0.0), views)
    return frames_at(times, starts[:, None] + np.arange(frames) / fps)
