"""Frames u8 [T, H, W, 3] -> views u8 [3, T, size, size]: crop, resize, flip, colour, static noise.

    in a worker     draw_crop, crop_and_resize, draw_jitter
    on the device   apply_jitter, on all clips of a batch at once

A context and its targets share one crop, so that token positions correspond. Colour and static
noise are drawn for each clip separately, so that neither palette nor static appearance identifies
a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mofore.errors import UserError
from mofore.settings import setting
from mofore.types import Batch, ColourJitter, LoadedBatch

# RGB to luma and two chroma axes (NTSC 1953). A rotation of the chroma axes changes the hue.
LUMA = (0.299, 0.587, 0.114)
YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = np.linalg.inv(YIQ)
# Static noise image: grid sizes of its scales, and the standard deviation of each in grey levels.
NOISE_GRIDS = (2, 4, 8, 16)
NOISE_STD = 35.0
# Values of clips that `apply_jitter` changes at a time, in fp32: a processor's cache holds few, a
# GPU needs many.
CHUNK, CHUNK_CPU = 2**26, 2**22


@dataclass
class AugmentConfig:
    """Augmentation of pretraining clips. Raises UserError for a value out of range."""

    crop_min_area: float = setting(
        0.4, "Smallest crop, as a share of the largest square's area; 1 is the centre crop."
    )
    flip_prob: float = setting(
        0.5, "Probability of a horizontal flip, shared by a context and its targets."
    )
    colour_jitter: float = setting(
        0.4, "Strength of brightness, contrast and saturation jitter, below 1; 0 disables it."
    )
    hue_jitter: float = setting(
        0.1, "Largest hue shift, as a share of the colour circle, 0 to 0.5; 0 disables it."
    )
    greyscale_prob: float = setting(0.0, "Probability that a clip is converted to greyscale.")
    static_noise: float = setting(
        0.0, "Largest weight of a static noise image blended over each clip; 0 disables it."
    )

    def __post_init__(self) -> None:
        if not 0 < self.crop_min_area <= 1:
            raise UserError(
                f"data.augment.crop_min_area={self.crop_min_area} is a share of an area: "
                "need 0 < crop_min_area <= 1."
            )
        if not (0 <= self.flip_prob <= 1 and 0 <= self.greyscale_prob <= 1):
            raise UserError(
                f"data.augment: flip_prob={self.flip_prob} and "
                f"greyscale_prob={self.greyscale_prob} are probabilities: need 0 to 1."
            )
        if not (0 <= self.colour_jitter < 1 and 0 <= self.hue_jitter <= 0.5):
            raise UserError(
                f"data.augment: need 0 <= colour_jitter={self.colour_jitter} < 1 and "
                f"0 <= hue_jitter={self.hue_jitter} <= 0.5."
            )
        if not 0 <= self.static_noise < 1:
            raise UserError(
                f"data.augment.static_noise={self.static_noise} is a weight: "
                "need 0 <= static_noise < 1."
            )


class Crop(NamedTuple):
    """A square of the frame, in pixels, and whether it is flipped horizontally."""

    top: int
    left: int
    side: int
    flipped: bool


def draw_crop(rng: np.random.Generator, height: int, width: int, augment: AugmentConfig) -> Crop:
    """A random square of `crop_min_area` to 1 of the largest square's area, flipped at random."""
    largest = min(height, width)
    if augment.crop_min_area == 1:
        return centre_crop(height, width)._replace(flipped=bool(rng.random() < augment.flip_prob))
    side = max(1, round(largest * float(np.sqrt(rng.uniform(augment.crop_min_area, 1)))))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return Crop(int(top), int(left), side, bool(rng.random() < augment.flip_prob))


def centre_crop(height: int, width: int) -> Crop:
    """The largest centred square, not flipped."""
    side = min(height, width)
    return Crop((height - side) // 2, (width - side) // 2, side, False)


def crop_and_resize(frames: NDArray[np.uint8], crop: Crop, size: int) -> Tensor:
    """u8 [T, H, W, 3] -> u8 [T, 3, size, size]: the crop, bilinear with antialiasing, then flip."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    images = V.resized_crop(
        images, crop.top, crop.left, crop.side, crop.side, [size, size], antialias=True
    )
    return V.horizontal_flip(images) if crop.flipped else images


def draw_jitter(rng: np.random.Generator, augment: AugmentConfig) -> ColourJitter:
    """Colour jitter and static noise of one clip, the same for all its frames.

    Brightness, contrast, saturation and hue are all affine in RGB: one 3 x 3 matrix, and an offset
    that depends on the clip's mean luma.

    Then each frame is blended with one static noise image of weight 0 to `augment.static_noise`.
    Motion is preserved; static appearance cannot serve as a shortcut. Wang et al. 2021 (arXiv
    2009.05769) blend with a frame of the same video; noise adds nothing of the video itself.
    """
    low, high = 1 - augment.colour_jitter, 1 + augment.colour_jitter
    brightness, contrast, saturation = rng.uniform(low, high, 3)
    angle = 2 * np.pi * rng.uniform(-augment.hue_jitter, augment.hue_jitter)
    if rng.random() < augment.greyscale_prob:
        saturation = 0.0
    yiq_change = np.eye(3)  # luma is unchanged
    yiq_change[1:, 1:] = saturation * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    matrix = brightness * contrast * (RGB @ yiq_change @ YIQ)
    strengths = (augment.colour_jitter, augment.hue_jitter, augment.greyscale_prob)
    if not any((*strengths, augment.static_noise)):
        matrix = matrix[:0]
    noise_weight, noise = 0.0, np.empty(0)
    if augment.static_noise:
        noise_weight = rng.uniform(0, augment.static_noise)
        noise = draw_noise(rng)
    drawn = (matrix, brightness * (1 - contrast), noise_weight, noise)
    return ColourJitter(*(torch.as_tensor(part, dtype=torch.float32) for part in drawn))


def draw_noise(rng: np.random.Generator) -> NDArray[np.float64]:
    """Coloured noise of several scales, f64 [V]: a colour, then a grid of each of NOISE_GRIDS."""
    colour = rng.uniform(0, 255, 3)
    grids = [rng.normal(0, NOISE_STD, 3 * size * size) for size in NOISE_GRIDS]
    return np.concatenate([colour, *grids])


def stack_jitters(jitters: Sequence[ColourJitter]) -> ColourJitter:
    """The jitters of n clips or samples as one, with a first dimension of n."""
    return ColourJitter(*(torch.stack(parts) for parts in zip(*jitters, strict=True)))


def apply_jitter(loaded: LoadedBatch) -> Batch:
    """Change the colours of all clips of a batch and blend them with noise, on the batch's device.

    Needs no host synchronisation. The pixels of a clip do not depend on the others in its batch,
    bit for bit.
    """
    batch, jitter = loaded
    if not jitter.matrix.numel():
        return batch
    contexts = ColourJitter(*(part[:, 0] for part in jitter))
    targets = ColourJitter(*(part[:, 1:].flatten(0, 1) for part in jitter))
    changed = _jitter_clips(batch.targets.flatten(0, 1), targets)
    return batch._replace(
        context=_jitter_clips(batch.context, contexts), targets=changed.view_as(batch.targets)
    )


def _jitter_clips(clips: Tensor, jitter: ColourJitter) -> Tensor:
    """u8 [n, 3, T, H, W] -> the same with the jitter [n, ...] of each clip."""
    changed = torch.empty_like(clips)
    limit = CHUNK if clips.is_cuda else CHUNK_CPU
    count = max(1, limit // clips[0].numel())
    chunks = (part.split(count) for part in (changed, clips, *jitter))
    for out, chunk, *parts in zip(*chunks, strict=True):
        out.copy_(_jitter_chunk(chunk.float(), ColourJitter(*parts)))
    return changed


def _jitter_chunk(pixels: Tensor, jitter: ColourJitter) -> Tensor:
    """f32 [n, 3, T, H, W] -> the same, rounded, 0 to 255.

    With noise of weight w: (1 - w) (M x + offset) + w noise = (1 - w) M x + constant.
    """

    def per_clip(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1, 1)

    # Sums over rows of whole numbers are exact in fp32, and their sums in fp64: no order of
    # summation changes the mean.
    means = pixels.sum(dim=4).double().mean(dim=(2, 3)) / pixels.shape[4]
    channels = zip(LUMA, means.float().unbind(dim=1), strict=True)
    mean_luma = sum(weight * mean for weight, mean in channels)
    constant, matrix = per_clip(jitter.luma_weight * mean_luma), jitter.matrix
    if jitter.noise.shape[1]:
        image = static_noise_images(jitter.noise, *pixels.shape[3:]).unsqueeze(2)
        constant = constant.lerp(image, per_clip(jitter.noise_weight))
        matrix = matrix * (1 - jitter.noise_weight).view(-1, 1, 1)
    # Elementwise, not a matrix product, which a GPU may round to TF32.
    red, green, blue = pixels.split(1, dim=1)
    of_red, of_green, of_blue = matrix.view(-1, 3, 3, 1, 1, 1).unbind(dim=2)
    changed = torch.addcmul(constant, of_red, red)
    changed.addcmul_(of_green, green).addcmul_(of_blue, blue)
    return changed.round_().clamp_(0, 255)


def static_noise_images(noise: Tensor, height: int, width: int) -> Tensor:
    """What `draw_noise` drew, f32 [n, V] -> images f32 [n, 3, height, width] in 0 to 255."""
    colour, *grids = noise.split([3, *(3 * size * size for size in NOISE_GRIDS)], dim=1)
    image = colour.view(-1, 3, 1, 1)
    for size, grid in zip(NOISE_GRIDS, grids, strict=True):
        values = grid.reshape(-1, 3, size, size)
        image = image + _stretch(_stretch(values, height, 2), width, 3)
    return image.clamp_(0, 255)


def _stretch(values: Tensor, length: int, dim: int) -> Tensor:
    """Linear interpolation of one dimension of f32 [n, 3, h, w] to `length`.

    F.interpolate(mode="bilinear") rounds differently on other numbers of threads.
    """
    size = values.shape[dim]
    centres = torch.arange(length, device=values.device) + 0.5
    position = (centres * (size / length) - 0.5).clamp_(0, size - 1)
    low = position.long()
    high = (low + 1).clamp_(max=size - 1)
    weight = (position - low).view(-1, *[1] * (3 - dim))
    return values.index_select(dim, low).lerp(values.index_select(dim, high), weight)


def centre_view(frames: NDArray[np.uint8], size: int) -> Tensor:
    """The view of evaluation, centre crop and resize: u8 [T, H, W, 3] -> u8 [T, 3, size, size]."""
    return crop_and_resize(frames, centre_crop(frames.shape[1], frames.shape[2]), size)
