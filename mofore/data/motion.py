"""Small labelled videos whose class is how the picture moves, never what it shows.

A texture (coloured noise of several scales with shapes on it) drifts, turns or grows at a constant pace, so
that what is in view is soon replaced and only the motion stays. Every texture appears once with every motion:
appearance tells nothing of the label. Textures are the groups, so a split by group tests on textures never
seen. Written with a real codec, for the demo and the tests.
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

from mofore.data.manifest import replacing

CODEC = {"crf": "15", "preset": "veryfast", "tune": "fastdecode", "threads": "1"}
MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "zoom_in", "zoom_out")
SIDE = 256  # pixels of a texture


@functools.lru_cache(maxsize=1)  # the motions of a texture follow each other
def paint_texture(number: int, seed: int) -> Tensor:
    """A picture f32 [3, SIDE, SIDE] in 0..1."""
    rng = np.random.default_rng((seed, number))
    picture = torch.zeros(1, 3, SIDE, SIDE)
    for cells in (6, 16, 28, 40):
        noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
        picture += F.interpolate(noise, size=(SIDE, SIDE), mode="bilinear")
    picture = picture[0] * 0.11 + _colour(rng)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for _ in range(90):
        (cy, cx), radius, colour = rng.uniform(0, SIDE, 2), rng.uniform(4, 11), _colour(rng)
        round_one = rng.random() < 0.5
        distance = torch.hypot(y - cy, x - cx) if round_one else torch.maximum((y - cy).abs(), (x - cx).abs())
        picture = torch.where(distance < radius, colour, picture)
    return picture.clamp(0, 1)


def _colour(rng: np.random.Generator) -> Tensor:
    colour = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.0))
    return torch.tensor(colour).view(3, 1, 1)


def motion_video(
    motion: str, number: int, seed: int = 0, frames: int = 48, size: int = 64, fps: int = 24
) -> NDArray[np.uint8]:
    """Texture `number` under one of MOTIONS: u8 [frames, size, size, 3]. Pace, place and angle are drawn."""
    rng = np.random.default_rng((seed, number, MOTIONS.index(motion)))
    texture = paint_texture(number, seed)
    seconds = (torch.arange(frames) - frames / 2) / fps * rng.uniform(0.7, 1.3)
    drift_x, drift_y = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}.get(motion, (0, 0))
    turn = 2.0 * seconds * {"clockwise": -1, "anticlockwise": 1}.get(motion, 0)  # radians
    growth = 0.9 * seconds * {"zoom_in": -1, "zoom_out": 1}.get(motion, 0)  # log of the scale
    # Each pixel of a frame looks somewhere on the texture: turn and drift, then a fixed turn, scale and place.
    drift = 1.4 * seconds[:, None] * torch.tensor([drift_x, drift_y])  # half widths of the frame
    moving = torch.cat([rotation(turn), drift[:, :, None]], dim=2)
    fixed = rotation(torch.full((1,), rng.uniform(0, 2 * math.pi)))
    scale = rng.uniform(0.8, 1.25) * size / SIDE * growth.exp()
    look = fixed @ moving * scale.view(-1, 1, 1)
    look[:, :, 2] += torch.from_numpy(rng.uniform(-0.3, 0.3, 2)).float()
    grid = F.affine_grid(look, [frames, 3, size, size], align_corners=False)
    pictures = texture.expand(frames, -1, -1, -1)
    seen = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    return (seen * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def rotation(angles: Tensor) -> Tensor:
    """f32 [n] radians -> [n, 2, 2]."""
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Two round another way than one, in a few pixels; and on a busy machine they wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def write_motion_videos(
    root: Path, textures: int, seed: int = 0, frames: int = 48, size: int = 64, fps: int = 24,
    draw: Callable[..., NDArray[np.uint8]] = motion_video,
) -> None:  # fmt: skip
    """ROOT/MOTION/textureNN.mp4 (H.264), and beside the folders what `prepare` reads: groups.tsv (a texture is a
    group), trainlist01.txt and testlist01.txt (every fifth texture). Files that exist are left.

    `draw` makes a video as `motion_video` does.
    """
    lists: dict[str, list[str]] = {"groups.tsv": [], "trainlist01.txt": [], "testlist01.txt": []}
    every = list(itertools.product(range(textures), MOTIONS))
    for number, motion in tqdm(every, "videos", unit="file", dynamic_ncols=True):
        name = f"{motion}/texture{number:02d}.mp4"
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                encode(temporary, draw(motion, number, seed, frames, size, fps), fps)
        lists["groups.tsv"].append(f"{name}\ttexture{number:02d}")
        lists["testlist01.txt" if number % 5 == 0 else "trainlist01.txt"].append(name)
    for name, lines in lists.items():
        with replacing(root / name) as temporary:
            Path(temporary).write_text("\n".join(lines) + "\n")


def encode(path: str, video: NDArray[np.uint8], fps: int) -> None:
    """u8 [n, H, W, 3] (even sides) as H.264 in an mp4, made to decode fast."""
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=CODEC)
        stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
