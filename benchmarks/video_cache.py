"""Videos of the learning benchmark, decoded once and kept in memory: decoding is not timed.

    easy   the demo's videos: one texture fills the view and moves; the motion is the label
    hard   three textured objects share the motion that is the label, in front of a textured
           background that drifts in a random direction

Appearance carries no information about the label. A texture is a group, and the textures of the
test split are never trained on. Any manifest with labels, splits and groups can replace them.
A fifth of the train groups is the validation split, the only one used for choices.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mofore.data.dataset import DataConfig, Timeline, View, collate, draw_sample, usable_rows
from mofore.data.decode import open_video, read_frames
from mofore.data.manifest import read_annotations, read_manifest
from mofore.data.order import global_batch_indices
from mofore.data.prepare import prepare
from mofore.data.synthetic import (
    MOTIONS,
    motion_video,
    paint_texture,
    rotation,
    write_motion_videos,
)
from mofore.data.views import apply_jitter, centre_view
from mofore.data.windows import evenly_spaced_clips
from mofore.types import Batch

OBJECTS = 3
MAX_SHORT_SIDE = 96  # pixels; larger frames are downscaled
TEXTURE_SCALE, TEXTURE_CENTRE = 0.3, np.zeros(2)  # the part of a texture that fills the view


class VideoCache(NamedTuple):
    """N decoded videos. splits: "train", "validation" or "test"."""

    frames: list[np.ndarray]  # u8 [n, H, W, 3] each
    times: list[np.ndarray]  # f64 [n] each, seconds
    durations: list[float]  # seconds
    labels: np.ndarray  # str [N]
    groups: np.ndarray  # str [N]
    splits: np.ndarray  # str [N]

    def rows(self, split: str) -> np.ndarray:
        """i64 [n]: the videos of a split."""
        return np.flatnonzero(self.splits == split)

    def timeline(self, row: int) -> Timeline:
        """What `draw_sample` needs to know of a video."""
        return Timeline(self.times[row], self.durations[row], *self.frames[row].shape[1:3])

    def read(self, row: int, indices: np.ndarray, view: View) -> Tensor:
        """Views of frames, as `draw_sample` reads them."""
        return view(self.frames[row][indices])


def hard_video(motion: str, number: int, seed: int, frames: int, size: int, fps: int) -> np.ndarray:
    """u8 [frames, size, size, 3]: objects with texture `number` that move by one of MOTIONS."""
    rng = np.random.default_rng((seed, number, MOTIONS.index(motion), 1))
    seconds = (torch.arange(frames) - frames / 2) / fps
    angle, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.2)
    camera = torch.tensor([math.cos(angle), math.sin(angle)]).float() * speed
    zero = torch.zeros(frames)
    background = paint_texture(1000 + number, seed)
    video = _render(background, size, seconds[:, None] * camera, zero, zero)
    texture = paint_texture(number, seed)
    directions = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    direction = directions.get(motion, (0, 0))
    turns = {"clockwise": 1, "anticlockwise": -1}.get(motion, 0)
    zooms = {"zoom_in": 1, "zoom_out": -1}.get(motion, 0)
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, size)], indexing="ij")
    for _ in range(OBJECTS):
        speed = rng.uniform(0.7, 1.3)
        path = speed * seconds[:, None] * torch.tensor(direction)
        centre = torch.from_numpy(rng.uniform(-0.7, 0.7, 2)).float() + path
        centre = (centre + 1.4) % 2.8 - 1.4  # objects that leave on one side enter on the other
        log_scale = 0.7 * speed * seconds * zooms
        scale = torch.exp(log_scale)
        radius = rng.uniform(0.35, 0.5) * scale
        distance = torch.hypot(x - centre[:, 0].view(-1, 1, 1), y - centre[:, 1].view(-1, 1, 1))
        inside = distance < radius.view(-1, 1, 1)
        turn, texture_centre = 2.5 * speed * seconds * turns, rng.uniform(-0.4, 0.4, 2)
        shown = _render(texture, size, -centre, turn, -scale.log(), texture_centre)
        video = torch.where(inside.unsqueeze(1), shown, video)
    return (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _render(
    texture: Tensor,
    size: int,
    shift: Tensor,
    turn: Tensor,
    log_scale: Tensor,
    centre: np.ndarray = TEXTURE_CENTRE,
) -> Tensor:
    """A texture f32 [3, S, S] shifted, turned and scaled: f32 [n, 3, size, size].

    shift: f32 [n, 2]; turn (radians), log_scale: f32 [n]; one row for each frame.
    """
    linear = rotation(turn) * (TEXTURE_SCALE * log_scale.exp()).view(-1, 1, 1)
    theta = torch.cat([linear, (linear @ shift.unsqueeze(2))], dim=2)
    theta[:, :, 2] += torch.from_numpy(centre).float()
    grid = F.affine_grid(theta, [len(shift), 3, size, size], align_corners=False)
    textures = texture.expand(len(shift), -1, -1, -1)
    return F.grid_sample(textures, grid, padding_mode="reflection", align_corners=False)


DATASETS = {"easy": motion_video, "hard": hard_video}


def prepare_dataset(name: str, folder: Path, textures: int) -> Path:
    """Write the videos of one of DATASETS below `folder`, once, and return their manifest."""
    root = folder / f"{name}-{textures}"
    videos, data = root / "videos", root / "data"
    if not (data / "manifest.parquet").exists():
        write_motion_videos(videos, textures, draw=DATASETS[name])
        lists = [str(videos / name) for name in ("trainlist01.txt", "testlist01.txt")]
        prepare(videos, data, splits=lists, groups=str(videos / "groups.tsv"))
    return data / "manifest.parquet"


def load_videos(manifest_path: Path, *configs: DataConfig) -> VideoCache:
    """Decode every video that is long enough for a context and a target of each configuration."""
    manifest, annotations = read_manifest(str(manifest_path)), read_annotations(str(manifest_path))
    usable = (usable_rows(manifest, replace(config, split=None), clips=2)[0] for config in configs)
    rows = reduce(np.intersect1d, usable)
    frames, times = [], []
    for row in rows:
        video = manifest[row]
        times.append(video.frame_index().times)
        with open_video(video) as reader:
            frames.append(downscale(read_frames(reader, np.arange(video.frames))))
    groups = np.array([annotations.groups[row] or "" for row in rows])
    splits = np.array([annotations.splits[row] or "" for row in rows])
    train_groups = sorted(set(groups[splits == "train"]))
    validation = np.isin(groups, train_groups[::5]) & (splits == "train")
    splits = np.where(validation, "validation", splits)
    durations = [manifest[row].duration for row in rows]
    labels = np.array([annotations.labels[row] or "" for row in rows])
    return VideoCache(frames, times, durations, labels, groups, splits)


def downscale(frames: np.ndarray) -> np.ndarray:
    """u8 [n, H, W, 3] -> the same with a short side of at most MAX_SHORT_SIDE pixels."""
    if min(frames.shape[1:3]) <= MAX_SHORT_SIDE:
        return frames
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    images = V.resize(images, [MAX_SHORT_SIDE], antialias=True)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def sample_batches(
    cache: VideoCache,
    rows: np.ndarray,
    config: DataConfig,
    batch: int,
    seed: int,
    tokens: int,
    teacher_keep_ratio: float = 1.0,
) -> Iterator[Batch]:
    """The global batches that a pretraining would draw from these videos, endlessly."""
    step = 0
    while True:
        samples = []
        for epoch, position in global_batch_indices(step, len(rows), batch, seed):
            row = int(rows[position])
            rng = np.random.default_rng((seed, epoch, row))
            clip = (rng, cache.timeline(row), partial(cache.read, row), row, config)
            samples.append(draw_sample(*clip, tokens, teacher_keep_ratio))
        yield apply_jitter(collate(samples))
        step += 1


def evaluation_clips(cache: VideoCache, row: int, config: DataConfig, views: int) -> Tensor:
    """u8 [views, 3, T, size, size]: the clips that `mofore evaluate` would cut from a video."""
    indices = evenly_spaced_clips(
        cache.times[row], cache.durations[row], views, config.frames, config.fps
    )
    images = centre_view(cache.frames[row][indices.ravel()], config.size)
    return images.unflatten(0, indices.shape).transpose(1, 2).contiguous()
