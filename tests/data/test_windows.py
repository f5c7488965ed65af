"""windows: gaps follow their distribution and fit; frame indices never wrap or pass the end."""

import numpy as np
import pytest

from mofore.data.windows import (
    GapConfig,
    GapDistribution,
    clips_fit,
    draw_gaps,
    draw_windows,
    evenly_spaced_clips,
)
from mofore.errors import UserError

CONSTANT = np.arange(100) / 25  # four seconds at 25 fps


def draws(gap: GapConfig, room: float, n: int = 4000) -> np.ndarray:
    return draw_gaps(np.random.default_rng(0), gap, n, room)


def test_uniform_gaps_fill_their_range():
    gaps = draws(GapConfig(GapDistribution.uniform, 0.5, 2.5), room=10)
    assert gaps.min() == pytest.approx(0.5, abs=0.01)
    assert gaps.max() == pytest.approx(2.5, abs=0.01)
    share, _ = np.histogram(gaps, bins=4, range=(0.5, 2.5))
    assert share / len(gaps) == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_log_uniform_gaps_are_uniform_in_their_logarithm():
    """As many gaps between 0.1 and 1 s as between 1 and 10 s."""
    gaps = draws(GapConfig(GapDistribution.log_uniform, 0.1, 10), room=20)
    assert 0.1 <= gaps.min() <= gaps.max() <= 10
    share, _ = np.histogram(np.log10(gaps), bins=4, range=(-1, 1))
    assert share / len(gaps) == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_fixed_gaps_are_the_largest():
    assert set(draws(GapConfig(GapDistribution.fixed, 0.2, 0.7), room=10)) == {0.7}


@pytest.mark.parametrize("distribution", list(GapDistribution))
@pytest.mark.parametrize(
    ("room", "low", "high"),
    [
        (3.0, 0.5, 2.0),
        (1.0, 0.5, 1.0),
        (0.5, 0.5, 0.5),
        (0.2, 0.2, 0.2),
        (0.0, 0.0, 0.0),
        (-1e-6, 0.0, 0.0),
    ],
)
def test_gaps_shrink_to_the_room(distribution, room, low, high):
    """[min, room] if room < max; the room itself if room < min, down to 0."""
    gaps = draws(GapConfig(distribution, 0.5, 2.0), room)
    assert gaps.min() >= low
    assert gaps.max() <= high
    if low < high and distribution is not GapDistribution.fixed:
        assert gaps.min() == pytest.approx(low, abs=0.02)
        assert gaps.max() == pytest.approx(high, abs=0.02)
    else:
        assert set(gaps) == {high}


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1), (2, 1)])
def test_an_invalid_range_raises(low, high):
    with pytest.raises(UserError, match="data.gap"):
        GapConfig(GapDistribution.uniform, low, high)


def test_log_uniform_needs_a_smallest_gap():
    with pytest.raises(UserError, match="data.gap.min"):
        GapConfig(GapDistribution.log_uniform, 0.0, 1.0)


@pytest.mark.parametrize("distribution", list(GapDistribution))
def test_windows_lie_in_the_video_in_order(distribution):
    """Clips of 8 at 12.5 fps from 25 fps: every second frame, once; context before targets."""
    for seed in range(300):
        rng = np.random.default_rng(seed)
        windows = draw_windows(rng, CONSTANT, 4.0, 8, 12.5, 3, GapConfig(distribution, 0.1, 5.0))
        assert (windows.context.shape, windows.targets.shape) == ((8,), (3, 8))
        clips = np.concatenate([windows.context[None], windows.targets])
        assert clips.min() >= 0
        assert clips.max() <= 99
        assert (np.diff(clips, axis=1) == 2).all()
        assert (windows.targets[:, 0] > windows.context[-1]).all()


def test_gaps_are_measured_between_the_sampled_frames():
    for seed in range(100):
        windows = draw_windows(
            np.random.default_rng(seed), CONSTANT, 4.0, 8, 12.5, 2, GapConfig(max=2.0)
        )
        begin, end = CONSTANT[windows.targets[:, 0]], CONSTANT[windows.context[0]] + 8 / 12.5
        assert windows.gaps.dtype == np.float32
        assert windows.gaps == pytest.approx(begin - end, abs=1e-6)


def test_windows_start_anywhere_and_reach_both_ends():
    starts, ends = set(), set()
    for seed in range(500):
        windows = draw_windows(
            np.random.default_rng(seed), CONSTANT, 4.0, 8, 12.5, 1, GapConfig(max=1.0)
        )
        starts.add(int(windows.context[0]))
        ends.add(int(windows.targets[0, -1]))
    assert starts >= set(range(40))
    assert max(ends) >= 97  # a clip ends 1 / fps after its last frame began


def test_no_room_left_means_target_follows_context():
    """A video of exactly two clips has one possible context and target."""
    windows = draw_windows(
        np.random.default_rng(0), CONSTANT[:16], 0.64, 8, 25.0, 2, GapConfig(min=0.5)
    )
    assert windows.context.tolist() == list(range(8))
    assert windows.targets.tolist() == [list(range(8, 16))] * 2
    assert windows.gaps.tolist() == [0, 0]


def test_a_variable_frame_rate_is_sampled_at_its_times():
    """Frames 33 and 200 ms apart: the frame shown at each time, not every n-th frame."""
    steps = np.tile([0.033, 0.2], 40)
    times = np.concatenate([[0], np.cumsum(steps)[:-1]])
    duration = float(steps.sum())
    for seed in range(100):
        windows = draw_windows(
            np.random.default_rng(seed), times, duration, 6, 4.0, 2, GapConfig(max=1.0)
        )
        for clip in [windows.context, *windows.targets]:
            sampled = times[clip[0]] + np.arange(6) / 4
            lag = sampled - times[clip]  # the clip began on its first frame or up to 0.2 s later
            assert (lag > -0.2 - 1e-3).all()
            assert (lag < 0.2 + 1e-3).all()
            assert (np.diff(clip) >= 1).all()
        measured = times[windows.targets[:, 0]] - times[windows.context[0]] - 6 / 4
        assert windows.gaps == pytest.approx(np.maximum(measured, 0), abs=1e-6)


def test_frames_repeat_if_the_video_has_a_lower_rate():
    slow = np.arange(20) / 5
    windows = draw_windows(np.random.default_rng(0), slow, 4.0, 8, 10.0, 1, GapConfig(max=1.0))
    assert set(np.diff(windows.context)) == {0, 1}


def test_clips_fit_tolerates_rounded_times():
    assert clips_fit(1.0, 4, 8.0, 2)
    assert clips_fit(1.0 - 5e-5, 4, 8.0, 2)
    assert not clips_fit(0.99, 4, 8.0, 2)
    assert clips_fit(0.99, 4, 8.0, 1)


def test_evenly_spaced_clips_reach_start_and_end():
    clips = evenly_spaced_clips(CONSTANT, 4.0, 3, 10, 12.5)
    assert clips[:, 0].tolist() == [0, 40, 80]
    assert clips[-1, -1] == 98
    assert (
        evenly_spaced_clips(CONSTANT[:20], 0.8, 2, 10, 12.5).tolist() == [list(range(0, 20, 2))] * 2
    )
