"""Frames u8 [T, H, W, 3] -> views u8 [3, T, size, size]: crop, resize, flip, colour, static noise.

A context and its targets share one crop, so that token positions correspond. Colour and static
noise are drawn for each clip separately, so that neither palette nor static appearance identifies
a clip.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mofore.errors import UserError
from mofore.settings import setting

# RGB to luma and two chroma axes (NTSC 1953). A rotation of the chroma axes changes the hue.
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = np.linalg.inv(YIQ)
# Static noise image: grid sizes of its scales, and the standard deviation of each in grey levels.
NOISE_GRIDS = (2, 4, 8, 16)
NOISE_STD = 35.0


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


def jitter_colour(rng: np.random.Generator, images: Tensor, augment: AugmentConfig) -> Tensor:
    """Colour jitter and static noise, the same for all frames: u8 [T, 3, H, W] -> u8 [3, T, H, W].

    Brightness, contrast, saturation and hue are all affine in RGB. One 3 x 3 matrix and an offset
    apply them in one pass over the pixels.

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
    matrix = torch.from_numpy(brightness * contrast * (RGB @ yiq_change @ YIQ)).float()
    pixels = images.transpose(0, 1).flatten(1).float()
    mean_luma = torch.from_numpy(YIQ[:1]).float() @ pixels.mean(dim=1)
    pixels = torch.addmm(brightness * (1 - contrast) * mean_luma, matrix, pixels)
    pixels = pixels.view(3, len(images), *images.shape[2:])
    if augment.static_noise:
        weight = rng.uniform(0, augment.static_noise)
        pixels = pixels.lerp_(static_noise_image(rng, *images.shape[2:]), weight)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def static_noise_image(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """Coloured noise of several scales, f32 [3, 1, height, width] in 0 to 255."""
    image = torch.from_numpy(rng.uniform(0, 255, (1, 3, 1, 1))).float()
    for grid in NOISE_GRIDS:
        noise = torch.from_numpy(rng.normal(0, NOISE_STD, (1, 3, grid, grid))).float()
        image = image + F.interpolate(noise, size=(height, width), mode="bilinear")
    return image.clamp_(0, 255).transpose(0, 1)


def centre_view(frames: NDArray[np.uint8], size: int) -> Tensor:
    """The view of evaluation, centre crop and resize: u8 [T, H, W, 3] -> u8 [3, T, size, size]."""
    crop = centre_crop(frames.shape[1], frames.shape[2])
    return crop_and_resize(frames, crop, size).transpose(0, 1)
