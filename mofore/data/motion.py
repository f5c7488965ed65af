"""Small labelled videos whose class is how the picture moves, never what it shows.

A texture (coloured noise of many scales with some shapes on it) drifts, turns or grows at a constant pace.
Every texture appears once with every motion, so appearance tells nothing of the label, and textures are the
groups: a split by group tests on textures never seen. Written with a real codec, for the demo and the tests.
"""

import colorsys
import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from mofore.data.manifest import replacing

MOTIONS = ("left", "right", "up", "down", "clockwise", "anticlockwise", "zoom_in", "zoom_out")


def paint_texture(rng: np.random.Generator, side: int = 256) -> torch.Tensor:
    """A picture f32 [3, side, side] in 0..1 with detail at every scale."""
    picture = torch.zeros(1, 3, side, side)
    for cells in (6, 16, 28, 40):
        noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
        picture += F.interpolate(noise, size=(side, side), mode="bilinear")
    picture = picture[0] * 0.11 + _colour(rng)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    for _ in range(90):
        cy, cx, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(4, 11)
        disc, square = (y - cy) ** 2 + (x - cx) ** 2, torch.maximum((y - cy).abs(), (x - cx).abs()) ** 2
        inside = (disc if rng.random() < 0.5 else square) < radius**2
        picture = torch.where(inside, _colour(rng), picture)
    return picture.clamp(0, 1)


def _colour(rng: np.random.Generator) -> torch.Tensor:
    return torch.tensor(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.0))).view(
        3, 1, 1
    )


def move(
    texture: torch.Tensor, motion: str, rng: np.random.Generator, frames: int, size: int, fps: float
) -> np.ndarray:
    """The texture under one of MOTIONS: u8 [frames, size, size, 3]. Pace, place and angle are drawn."""
    assert motion in MOTIONS, motion
    seconds = torch.arange(frames) / fps - frames / fps / 2  # the middle of the video is time 0
    zero, pace = torch.zeros(frames), rng.uniform(0.7, 1.3)
    drift = 0.35 * pace * seconds  # widths of the picture
    shift = {"left": (1, 0), "right": (-1, 0), "up": (0, 1), "down": (0, -1)}.get(motion, (0, 0))
    turn = 1.0 * pace * seconds * {"clockwise": -1, "anticlockwise": 1}.get(motion, 0)
    growth = 0.7 * pace * seconds * {"zoom_in": -1, "zoom_out": 1}.get(motion, 0)
    angle, scale = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    place = rng.uniform(-0.3, 0.3, size=2)
    window = scale * size / texture.shape[-1] * growth.exp()
    turned, still = turn.to(torch.float32), zero + angle
    # where each pixel of the frame looks on the texture: a turn of the frame, then a fixed turn of the texture
    dx, dy = 2 * drift * shift[0], 2 * drift * shift[1]
    frame = torch.stack([torch.stack([turned.cos(), -turned.sin(), dx], -1),
                         torch.stack([turned.sin(), turned.cos(), dy], -1)], 1)  # fmt: skip
    fixed = torch.stack(
        [torch.stack([still.cos(), -still.sin()], -1), torch.stack([still.sin(), still.cos()], -1)], 1
    )
    look = fixed @ frame * window.view(-1, 1, 1)
    look[:, :, 2] += torch.tensor(place, dtype=torch.float32)
    grid = F.affine_grid(look, [frames, 3, size, size], align_corners=False)
    # supersampling would be truer; bilinear is enough at these scales
    seen = F.grid_sample(
        texture.expand(frames, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )
    return (seen * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def motion_videos(
    textures: int, seed: int = 0, frames: int = 48, size: int = 64, fps: int = 24
) -> Iterator[tuple[str, int, np.ndarray]]:
    """(motion, number of the texture, video u8 [frames, size, size, 3]): every texture under every motion."""
    for number in range(textures):
        rng = np.random.default_rng((seed, number))
        texture = paint_texture(rng)
        for motion in MOTIONS:
            yield motion, number, move(texture, motion, rng, frames, size, fps)


def write_motion_videos(
    root: Path, textures: int, seed: int = 0, frames: int = 48, size: int = 64, fps: int = 24
) -> None:
    """ROOT/MOTION/textureNN.mp4 (H.264), and beside the folders what `prepare` reads: groups.tsv (a texture is a
    group), trainlist01.txt and testlist01.txt (every fifth texture). Files that exist are left.
    """
    lists: dict[str, list[str]] = {"groups.tsv": [], "trainlist01.txt": [], "testlist01.txt": []}
    videos = motion_videos(textures, seed, frames, size, fps)
    for motion, number, video in tqdm(
        videos, "videos", textures * len(MOTIONS), unit="file", dynamic_ncols=True
    ):
        name = f"{motion}/texture{number:02d}.mp4"
        path = root / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                encode(temporary, video, fps)
        lists["groups.tsv"].append(f"{name}\ttexture{number:02d}")
        lists["testlist01.txt" if number % 5 == 0 else "trainlist01.txt"].append(name)
    for name, lines in lists.items():
        with replacing(root / name) as temporary:
            Path(temporary).write_text("\n".join(lines) + "\n")


def encode(path: str, video: np.ndarray, fps: int) -> None:
    """u8 [n, H, W, 3] (even sides) as H.264 in an mp4, a key frame every 12 frames."""
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "g": "12", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for image in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
