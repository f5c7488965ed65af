"""Frames u8 [T, H, W, 3] -> views u8 [3, T, size, size]: crop, resize, flip, then colour and a still picture.

Place is shared by a context and its targets, or a forecast of tokens would have no meaning; colour and the still
picture are drawn for each clip alone, so that what a clip shows cannot be told by its palette, nor by what stands still.
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

# RGB to luma and two axes of colour (NTSC 1953); a turn of the last two is a change of hue.
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = np.linalg.inv(YIQ)
NOISE_CELLS, NOISE_DEVIATION = (
    (2, 4, 8, 16),
    35.0,
)  # of a still picture: cells along a side; levels, each scale


@dataclass
class AugmentConfig:
    crop: float = 0.4  # smallest share of the largest square that a crop keeps; 1 = centre crop
    flip: float = 0.5  # probability of a mirror image, the same for context and targets
    colour: float = 0.4  # strength of brightness, contrast and saturation changes; 0 = none
    hue: float = 0.1  # largest turn of the colour circle, 0..0.5
    grey: float = 0.0  # probability of a clip without colour
    still: float = (
        0.0  # largest share of a still picture of noise that lies over all frames of a clip; 0 = none
    )

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"data.augment.crop={self.crop} is a share: give 0 < crop <= 1.")
        if not (0 <= self.flip <= 1 and 0 <= self.grey <= 1):
            raise UserError(f"data.augment: flip={self.flip} and grey={self.grey} are probabilities, 0 to 1.")
        if not (0 <= self.colour < 1 and 0 <= self.hue <= 0.5):
            raise UserError(
                f"data.augment: need 0 <= colour={self.colour} < 1 and 0 <= hue={self.hue} <= 0.5."
            )
        if not 0 <= self.still < 1:
            raise UserError(f"data.augment.still={self.still} is a share: give 0 <= still < 1.")


class Place(NamedTuple):
    """Where a sample looks: a square of the frame, and whether it is mirrored."""

    top: int
    left: int
    side: int
    mirrored: bool


def draw_place(rng: np.random.Generator, height: int, width: int, augment: AugmentConfig) -> Place:
    """A square of `crop`..1 of the area of the largest one, anywhere in the frame."""
    largest = min(height, width)
    if augment.crop == 1:
        return centre_place(height, width)._replace(mirrored=bool(rng.random() < augment.flip))
    side = max(1, round(largest * float(np.sqrt(rng.uniform(augment.crop, 1)))))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    return Place(int(top), int(left), side, bool(rng.random() < augment.flip))


def centre_place(height: int, width: int) -> Place:
    side = min(height, width)
    return Place((height - side) // 2, (width - side) // 2, side, False)


def cut(frames: NDArray[np.uint8], place: Place, size: int) -> Tensor:
    """The square of every frame, resized (bilinear, antialiased): u8 [T, 3, size, size]."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    images = V.resized_crop(
        images, place.top, place.left, place.side, place.side, [size, size], antialias=True
    )
    return V.horizontal_flip(images) if place.mirrored else images


def recolour(rng: np.random.Generator, images: Tensor, augment: AugmentConfig) -> Tensor:
    """One change of brightness, contrast, saturation and hue for a whole clip: u8 [T, 3, H, W] -> [3, T, H, W]. All
    four are affine in RGB, so they are one 3 x 3 matrix and an offset: one pass over the pixels.

    Then a share of 0..`still` of one picture over all frames: what moves stays, what stands still is blurred with it
    (Wang et al. 2021, arXiv 2009.05769, take a frame of the same video; noise keeps nothing of it).
    """
    low, high = 1 - augment.colour, 1 + augment.colour
    brightness, contrast, saturation = rng.uniform(low, high, 3)
    angle = 2 * np.pi * rng.uniform(-augment.hue, augment.hue)
    if rng.random() < augment.grey:
        saturation = 0.0
    turned = np.eye(3)  # luma stays
    turned[1:, 1:] = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = torch.from_numpy(brightness * contrast * (RGB @ turned @ YIQ)).float()
    pixels = images.transpose(0, 1).flatten(1).float()
    middle = torch.from_numpy(YIQ[:1]).float() @ pixels.mean(dim=1)
    pixels = torch.addmm(brightness * (1 - contrast) * middle, matrix, pixels)
    pixels = pixels.view(3, len(images), *images.shape[2:])
    if augment.still:
        share = rng.uniform(0, augment.still)
        pixels = pixels.lerp_(still_picture(rng, *images.shape[2:]), share)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def still_picture(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """f32 [3, 1, height, width] in 0..255: coloured noise of several scales."""
    picture = torch.from_numpy(rng.uniform(0, 255, (1, 3, 1, 1))).float()
    for cells in NOISE_CELLS:
        noise = torch.from_numpy(rng.normal(0, NOISE_DEVIATION, (1, 3, cells, cells))).float()
        picture = picture + F.interpolate(noise, size=(height, width), mode="bilinear")
    return picture.clamp_(0, 255).transpose(0, 1)


def centre_view(frames: NDArray[np.uint8], size: int) -> Tensor:
    """The largest centred square, resized: u8 [3, T, size, size]. What evaluation sees."""
    return cut(frames, centre_place(frames.shape[1], frames.shape[2]), size).transpose(0, 1)
