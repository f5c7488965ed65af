"""Small labelled videos whose class is the motion, never the appearance.

A texture (coloured noise of several scales with shapes on it) moves, rotates or scales at a
constant speed, so that the visible part is soon replaced and only the motion remains. Every texture
appears once with every motion, so appearance carries no information about the label. Textures are
the groups: a split by group tests on unseen textures. Encoded with H.264, for the demo and the
tests.
"""

import colorsys
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mofore.files import replace_file, write_text

CODEC = {"crf": "15", "preset": "veryfast", "tune": "fastdecode", "threads": "1"}
MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "zoom_in", "zoom_out")
SIDE = 256  # pixels of a texture


@functools.lru_cache(maxsize=1)  # all motions of a texture are drawn in sequence
def paint_texture(number: int, seed: int) -> Tensor:
    """Texture f32 [3, SIDE, SIDE] in 0 to 1, a function of `number` and `seed`."""
    rng = np.random.default_rng((seed, number))
    texture = torch.zeros(1, 3, SIDE, SIDE)
    for cells in (6, 16, 28, 40):
        noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
        texture += F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    texture = texture[0] * 0.11 + _draw_colour(rng)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for _ in range(90):
        (cy, cx), radius, colour = rng.uniform(0, SIDE, 2), rng.uniform(4, 11), _draw_colour(rng)
        is_disc = rng.random() < 0.5
        dy, dx = y - cy, x - cx
        distance = torch.hypot(dy, dx) if is_disc else torch.maximum(dy.abs(), dx.abs())
        texture = torch.where(distance < radius, colour, texture)
    return texture.clamp(0, 1)


def _draw_colour(rng: np.random.Generator) -> Tensor:
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.0))
    return torch.tensor(colour).view(3, 1, 1)


def motion_video(
    motion: str, number: int, seed: int = 0, frames: int = 48, size: int = 64, fps: int = 24
) -> NDArray[np.uint8]:
    """Texture `number` with one of MOTIONS: u8 [frames, size, size, 3]. `size` is in pixels.

    Speed, position, scale and orientation are drawn from (seed, number, motion).
    """
    rng = np.random.default_rng((seed, number, MOTIONS.index(motion)))
    texture = paint_texture(number, seed)
    seconds = (torch.arange(frames) - frames / 2) / fps * rng.uniform(0.7, 1.3)
    drift_x, drift_y = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}.get(
        motion, (0, 0)
    )
    angle = 2.0 * seconds * {"clockwise": -1, "anticlockwise": 1}.get(motion, 0)  # radians
    log_scale = 0.9 * seconds * {"zoom_in": -1, "zoom_out": 1}.get(motion, 0)
    # Frame -> texture coordinates: the motion, then a constant rotation, scale and position.
    drift = 1.4 * seconds[:, None] * torch.tensor([drift_x, drift_y])  # in half widths of a frame
    moving = torch.cat([rotation(angle), drift[:, :, None]], dim=2)
    constant = rotation(torch.full((1,), rng.uniform(0, 2 * math.pi)))
    scale = rng.uniform(0.8, 1.25) * size / SIDE * log_scale.exp()
    affine = constant @ moving * scale.view(-1, 1, 1)
    affine[:, :, 2] += torch.from_numpy(rng.uniform(-0.3, 0.3, 2)).float()
    grid = F.affine_grid(affine, [frames, 3, size, size], align_corners=False)
    textures = texture.expand(frames, -1, -1, -1)
    video = F.grid_sample(textures, grid, padding_mode="reflection", align_corners=False)
    return (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def rotation(angles: Tensor) -> Tensor:
    """Rotation matrices f32 [n, 2, 2] of angles f32 [n] in radians."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch in one thread: with two, a few pixels round differently.

    On a busy machine two threads also wait for each other longer than they compute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@single_thread()
def write_motion_videos(
    root: Path,
    textures: int,
    seed: int = 0,
    frames: int = 48,
    size: int = 64,
    fps: int = 24,
    draw: Callable[..., NDArray[np.uint8]] = motion_video,
) -> None:
    """Write ROOT/MOTION/textureNN.mp4 (H.264) and the lists for `prepare`. Keeps existing videos.

    The lists, in ROOT: groups.tsv (a texture is a group), trainlist01.txt and testlist01.txt (every
    fifth texture).

    draw: renders a video, with the signature of `motion_video`.
    """
    lists: dict[str, list[str]] = {"groups.tsv": [], "trainlist01.txt": [], "testlist01.txt": []}
    pairs = list(itertools.product(range(textures), MOTIONS))
    for number, motion in tqdm(pairs, "videos", unit="file", dynamic_ncols=True):
        name = f"{motion}/texture{number:02d}.mp4"
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as temporary:
                write_h264(temporary, draw(motion, number, seed, frames, size, fps), fps)
        lists["groups.tsv"].append(f"{name}\ttexture{number:02d}")
        lists["testlist01.txt" if number % 5 == 0 else "trainlist01.txt"].append(name)
    for name, lines in lists.items():
        write_text(root / name, "\n".join(lines) + "\n")


def write_h264(path: str | Path, video: NDArray[np.uint8], fps: int) -> None:
    """Write u8 [n, H, W, 3] (even H and W) as H.264 in an MP4 that is fast to decode."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=CODEC)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
