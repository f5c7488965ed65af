"""views: crops lie inside the frame; colour and static noise are constant over a clip, and equal to
the formula of one clip.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mofore.data import views
from mofore.data.views import (
    NOISE_GRIDS,
    NOISE_STD,
    RGB,
    YIQ,
    AugmentConfig,
    Crop,
    apply_jitter,
    centre_view,
    crop_and_resize,
    draw_crop,
    draw_jitter,
    stack_jitters,
)
from mofore.errors import UserError
from mofore.types import Batch, ColourJitter, LoadedBatch

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
    view = centre_view(ramp(40, 100), 40).transpose(0, 1)
    assert view.shape == (3, 2, 40, 40)
    assert view[0, 0, 0].tolist() == list(range(30, 70))
    portrait = centre_view(ramp(100, 40), 40).transpose(0, 1)
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


def loaded_batch(
    augment: AugmentConfig, videos: int = 3, targets: int = 2, size: tuple[int, int] = (24, 20)
) -> LoadedBatch:
    """Random clips of 4 frames, and the jitter that is drawn from seed 5."""
    rng, shape = np.random.default_rng(1), (videos, 1 + targets, 3, 4, *size)
    clips = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    rng = np.random.default_rng(5)
    jitters = [
        stack_jitters([draw_jitter(rng, augment) for _ in range(1 + targets)])
        for _ in range(videos)
    ]
    nothing = torch.zeros(videos, 0, dtype=torch.int64)
    gaps, rows = torch.zeros(videos, targets), torch.arange(videos)
    batch = Batch(clips[:, 0], clips[:, 1:], gaps, rows, nothing, nothing)
    return LoadedBatch(batch, stack_jitters(jitters))


def jitter_clip(
    rng: np.random.Generator, images: torch.Tensor, augment: AugmentConfig
) -> torch.Tensor:
    """u8 [T, 3, H, W] -> u8 [3, T, H, W]: the clip as the context of a batch of one video."""
    loaded = loaded_batch(augment, videos=1, targets=0)
    clips = images.transpose(0, 1)[None]
    batch = loaded.batch._replace(context=clips, targets=clips[:, None])
    jitter = stack_jitters([stack_jitters([draw_jitter(rng, augment)] * 2)])
    return apply_jitter(LoadedBatch(batch, jitter)).context[0]


def formula(rng: np.random.Generator, images: torch.Tensor, augment: AugmentConfig) -> torch.Tensor:
    """Colour jitter and static noise of one clip, as one reads it: u8 [3, T, H, W] -> the same."""
    low, high = 1 - augment.colour_jitter, 1 + augment.colour_jitter
    brightness, contrast, saturation = rng.uniform(low, high, 3)
    angle = 2 * np.pi * rng.uniform(-augment.hue_jitter, augment.hue_jitter)
    if rng.random() < augment.greyscale_prob:
        saturation = 0.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    change = np.eye(3)
    change[1:, 1:] = saturation * turn
    matrix = torch.from_numpy(RGB @ change @ YIQ).float()
    pixels = brightness * images.flatten(1).float()
    mean_luma = torch.from_numpy(YIQ[:1]).float() @ pixels.mean(dim=1)
    pixels = matrix @ (contrast * pixels) + (1 - contrast) * mean_luma
    pixels = pixels.view(images.shape)
    if augment.static_noise:
        weight = rng.uniform(0, augment.static_noise)
        image = torch.from_numpy(rng.uniform(0, 255, (1, 3, 1, 1))).float()
        for grid in NOISE_GRIDS:
            noise = torch.from_numpy(rng.normal(0, NOISE_STD, (1, 3, grid, grid))).float()
            image = image + F.interpolate(noise, size=images.shape[2:], mode="bilinear")
        pixels = (1 - weight) * pixels + weight * image.clamp(0, 255).transpose(0, 1)
    return pixels.round().clamp(0, 255).to(torch.uint8)


JITTERS = {
    "colour": {"colour_jitter": 0.4, "hue_jitter": 0.5},
    "greyscale": {"greyscale_prob": 0.5},
    "noise": {"static_noise": 0.6},
    "all": {"colour_jitter": 0.8, "hue_jitter": 0.1, "greyscale_prob": 0.2, "static_noise": 0.9},
}


@pytest.mark.parametrize("change", JITTERS.values(), ids=JITTERS)
def test_a_batch_is_jittered_as_one_clip_after_the_other(change):
    """The same random numbers and the same pictures, up to rounding."""
    augment = replace(PLAIN, **change)
    loaded = loaded_batch(augment)
    changed, rng = apply_jitter(loaded), np.random.default_rng(5)
    for video in range(3):
        before = [loaded.batch.context[video], *loaded.batch.targets[video]]
        after = [changed.context[video], *changed.targets[video]]
        for clip_before, clip_after in zip(before, after, strict=True):
            expected = formula(rng, clip_before, augment)
            assert (clip_after.dtype, clip_after.shape) == (torch.uint8, expected.shape)
            assert (clip_after.int() - expected.int()).abs().max() <= 1
            assert (clip_after != expected).float().mean() < 1e-3
    assert not torch.equal(changed.targets, loaded.batch.targets)
    assert changed[2:] == loaded.batch[2:]


@pytest.mark.parametrize("change", JITTERS.values(), ids=JITTERS)
def test_a_clip_does_not_depend_on_its_batch(change, monkeypatch):
    """Bit for bit: a global batch may be divided into any micro-batches, and those into chunks."""
    loaded = loaded_batch(replace(PLAIN, **change))
    together = apply_jitter(loaded)
    for video in range(3):
        alone = LoadedBatch(*(type(part)(*(t[video, None] for t in part)) for part in loaded))
        assert torch.equal(apply_jitter(alone).context[0], together.context[video])
        assert torch.equal(apply_jitter(alone).targets[0], together.targets[video])
    monkeypatch.setattr(views, "CHUNK_CPU", 2 * loaded.batch.context[0].numel())
    assert torch.equal(apply_jitter(loaded).targets, together.targets)
    monkeypatch.setattr(views, "CHUNK_CPU", 1)
    assert torch.equal(apply_jitter(loaded).targets, together.targets)


def test_the_number_of_threads_changes_no_picture():
    """Bit for bit, so that they do not depend on the cores of a rank."""
    loaded = loaded_batch(replace(PLAIN, **JITTERS["all"]), videos=5, size=(96, 99))
    noise, found = loaded.jitter.noise.flatten(0, 1), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((apply_jitter(loaded).targets, views.static_noise_images(noise, 96, 99)))
    torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_no_jitter_draws_the_same_numbers_and_does_no_work():
    drawn = [np.random.default_rng(0) for _ in range(2)]
    assert not draw_jitter(drawn[0], PLAIN).matrix.numel()
    draw_jitter(drawn[1], replace(PLAIN, colour_jitter=0.4))
    assert drawn[0].random() == drawn[1].random()
    loaded = loaded_batch(PLAIN)
    assert apply_jitter(loaded) is loaded.batch


class NoHostReads(TorchDispatchMode):
    """Fails on operations that make the host wait for a GPU, or copy to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        packet = getattr(func, "overloadpacket", None)
        assert packet not in (aten._local_scalar_dense, aten.nonzero, aten.lift_fresh), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_host_reads_nothing_of_the_device(device):
    """On the meta device there are no values to read, and no CPU tensor may take part."""
    loaded = loaded_batch(replace(PLAIN, **JITTERS["all"]))
    batch, jitter = ([tensor.to(device) for tensor in part] for part in loaded)
    with NoHostReads():
        changed = apply_jitter(LoadedBatch(Batch(*batch), ColourJitter(*jitter)))
    assert changed.targets.device.type == device
    assert changed.targets.shape == loaded.batch.targets.shape


@pytest.mark.gpu
def test_a_gpu_makes_the_same_pictures(cuda):
    loaded = loaded_batch(replace(PLAIN, **JITTERS["all"]))
    batch, jitter = ([tensor.to(cuda) for tensor in part] for part in loaded)
    on_gpu, on_cpu = LoadedBatch(Batch(*batch), ColourJitter(*jitter)), apply_jitter(loaded)
    apply_jitter(on_gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = apply_jitter(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(changed[:2], on_cpu[:2], strict=True):
        assert (one.cpu().int() - other.int()).abs().max() <= 1
        assert (one.cpu() != other).float().mean() < 1e-3


@pytest.mark.parametrize("change", [{"colour_jitter": 0.4}, {"hue_jitter": 0.3}])
def test_colour_jitter_is_equal_for_all_frames(change):
    augment = replace(PLAIN, **change)
    static = clip()[:1].expand(4, -1, -1, -1)
    seen = jitter_clip(np.random.default_rng(1), static, augment)
    assert (seen.dtype, seen.shape) == (torch.uint8, (3, 4, 24, 24))
    frames = seen.transpose(0, 1)
    assert not torch.equal(frames, static)
    assert all(torch.equal(frame, frames[0]) for frame in frames)
    other = jitter_clip(np.random.default_rng(2), static, augment)
    assert not torch.equal(seen, other)


def test_greyscale_has_no_colour():
    seen = jitter_clip(
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
    seen = jitter_clip(np.random.default_rng(3), clip(), augment)
    before, after = (c[:, 1:].float() - c[:, :-1].float() for c in (clip().transpose(0, 1), seen))
    scale = float((before * after).sum() / before.square().sum())
    assert 0.4 <= scale < 1
    assert (after - scale * before).abs().max() <= 1.01  # rounding
    assert not torch.equal(jitter_clip(np.random.default_rng(4), clip(), augment), seen)


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
