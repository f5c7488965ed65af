"""views: crops lie inside the frame; colour and static noise are constant over a clip."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mofore.data.views import (
    AugmentConfig,
    Crop,
    centre_view,
    crop_and_resize,
    draw_crop,
    jitter_colour,
)
from mofore.errors import UserError

PLAIN = AugmentConfig(
    crop_min_area=1.0, flip_prob=0.0, colour_jitter=0.0, hue_jitter=0.0, greyscale_prob=0.0
)


def ramp(height: int, width: int, frames: int = 2) -> np.ndarray:
    """u8 [frames, H, W, 3]: red rises with the column, green with the row."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns, rows, np.full_like(rows, 7)], axis=-1).astype(np.uint8)
    return np.stack([image] * frames)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (160, 90), (63, 47), (41, 41)])
def test_crops_lie_inside_and_have_the_right_area(height, width):
    sides, corners = [], set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        crop = draw_crop(rng, height, width, AugmentConfig(crop_min_area=0.4))
        assert 0 <= crop.top <= height - crop.side
        assert 0 <= crop.left <= width - crop.side
        sides.append(crop.side)
        corners.add((crop.top, crop.left))
    largest = min(height, width)
    assert min(sides) == pytest.approx(largest * 0.4**0.5, abs=1.5)
    assert max(sides) == pytest.approx(largest, abs=1.5)
    assert len(corners) > 100
    assert crop_and_resize(ramp(height, width), crop, 32).shape == (2, 3, 32, 32)


def test_the_largest_crop_is_the_centre():
    augment = AugmentConfig(crop_min_area=1.0, flip_prob=0.0)
    assert draw_crop(np.random.default_rng(0), 40, 100, augment) == Crop(0, 30, 40, False)
    view = centre_view(ramp(40, 100), 40)
    assert view.shape == (3, 2, 40, 40)
    assert view[0, 0, 0].tolist() == list(range(30, 70))
    portrait = centre_view(ramp(100, 40), 40)
    assert portrait[1, 0, :, 0].tolist() == list(range(30, 70))


@pytest.mark.parametrize(
    ("flip_prob", "flipped"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})]
)
def test_flips(flip_prob, flipped):
    for area in (0.5, 1.0):
        augment = AugmentConfig(crop_min_area=area, flip_prob=flip_prob)
        crops = [draw_crop(np.random.default_rng(seed), 40, 40, augment) for seed in range(50)]
        assert {crop.flipped for crop in crops} == flipped
    plain, turned = (
        crop_and_resize(ramp(40, 40), Crop(0, 0, 40, side), 40) for side in (False, True)
    )
    assert torch.equal(turned, plain.flip(-1))


def test_a_crop_of_the_output_size_is_not_resampled():
    frames = ramp(50, 60)
    view = crop_and_resize(frames, Crop(3, 5, 32, False), 32)
    assert view.dtype == torch.uint8
    assert torch.equal(view, torch.from_numpy(frames[:, 3:35, 5:37]).permute(0, 3, 1, 2))


def test_resizing_is_antialiased():
    """Fine stripes become grey, not wider stripes."""
    stripes = np.zeros((1, 64, 64, 3), np.uint8)
    stripes[:, :, ::2] = 200
    view = crop_and_resize(stripes, Crop(0, 0, 64, False), 16).float()[:, :, :, 2:-2]
    assert view.mean().item() == pytest.approx(100, abs=2)
    assert view.std().item() < 5


def clip() -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(60, 200, (4, 3, 24, 24), dtype=np.uint8)
    )


def test_zero_jitter_changes_nothing():
    assert torch.equal(
        jitter_colour(np.random.default_rng(0), clip(), PLAIN), clip().transpose(0, 1)
    )


@pytest.mark.parametrize("change", [{"colour_jitter": 0.4}, {"hue_jitter": 0.3}])
def test_colour_jitter_is_equal_for_all_frames(change):
    augment = replace(PLAIN, **change)
    static = clip()[:1].expand(4, -1, -1, -1)
    seen = jitter_colour(np.random.default_rng(1), static, augment)
    assert (seen.dtype, seen.shape) == (torch.uint8, (3, 4, 24, 24))
    frames = seen.transpose(0, 1)
    assert not torch.equal(frames, static)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    other = jitter_colour(np.random.default_rng(2), static, augment)
    assert not torch.equal(seen, other)


def test_greyscale_has_no_colour():
    seen = jitter_colour(
        np.random.default_rng(0),
        clip(),
        AugmentConfig(colour_jitter=0.0, hue_jitter=0.0, greyscale_prob=1.0),
    ).int()
    assert (seen.amax(dim=0) - seen.amin(dim=0)).max() <= 1


def test_static_noise_adds_no_motion():
    """One image over all frames: frame differences shrink by one factor and change no further."""
    augment = AugmentConfig(
        crop_min_area=1.0, flip_prob=0.0, colour_jitter=0.0, hue_jitter=0.0, static_noise=0.6
    )
    seen = jitter_colour(np.random.default_rng(3), clip(), augment)
    before, after = (c[:, 1:].float() - c[:, :-1].float() for c in (clip().transpose(0, 1), seen))
    scale = float((before * after).sum() / before.square().sum())
    assert 0.4 <= scale < 1
    assert (after - scale * before).abs().max() <= 1.01  # rounding
    assert not torch.equal(jitter_colour(np.random.default_rng(4), clip(), augment), seen)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_min_area", 0.0),
        ("crop_min_area", 1.5),
        ("flip_prob", 2.0),
        ("greyscale_prob", -1.0),
        ("colour_jitter", 1.0),
        ("hue_jitter", 0.6),
        ("static_noise", 1.0),
    ],
)
def test_values_out_of_range_raise(key, value):
    with pytest.raises(UserError, match=f"data.augment.*{key}"):
        AugmentConfig(**{key: value})
