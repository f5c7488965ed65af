"""Videos of the learning benchmark, decoded once and kept in memory, so that what is timed is learning.

    easy   the demo's: one texture fills the view and moves; its motion is the label
    hard   three textured objects share the motion that is the label, over a textured background that drifts anywhere

A video's appearance tells nothing of its label; textures are the groups, and test textures are never trained on.
Real videos may stand in for them: any manifest with labels, splits and groups.
A fifth of the train groups is the validation part, the only one that choices may look at.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from mofore.data.dataset import DataConfig, collate, draw_sample, usable_rows
from mofore.data.decode import frame_times, open_video, read_frames
from mofore.data.loader import global_batch_keys
from mofore.data.manifest import read_annotations, read_manifest
from mofore.data.motion import MOTIONS, motion_video, paint_texture, rotation, write_motion_videos
from mofore.data.prepare import prepare
from mofore.data.views import centre_view
from mofore.data.windows import spread_clips
from mofore.types import Batch

OBJECTS = 3
LARGEST = 96  # pixels of a frame's short side that is kept in memory
SCALE, ORIGIN = 0.3, np.zeros(2)  # how much of a texture fills the view, and from where


class Footage(NamedTuple):
    frames: list[np.ndarray]  # a video each: u8 [n, H, W, 3]
    times: list[np.ndarray]  # f64 [n] seconds
    durations: list[float]
    labels: np.ndarray  # str [N]
    groups: np.ndarray  # str [N]
    parts: np.ndarray  # str [N]: train, validation, test

    def rows(self, part: str) -> np.ndarray:
        return np.flatnonzero(self.parts == part)


def hard_video(motion: str, number: int, seed: int, frames: int, size: int, fps: int) -> np.ndarray:
    """u8 [frames, size, size, 3]: objects of texture `number` under one of MOTIONS, over one that drifts by itself."""
    rng = np.random.default_rng((seed, number, MOTIONS.index(motion), 1))
    seconds = (torch.arange(frames) - frames / 2) / fps
    angle, pace = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 1.2)
    camera = torch.tensor([math.cos(angle), math.sin(angle)]).float() * pace
    still = torch.zeros(frames)
    picture = _look(paint_texture(1000 + number, seed), size, seconds[:, None] * camera, still, still)
    texture = paint_texture(number, seed)
    direction = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    turns = {"clockwise": 1, "anticlockwise": -1}.get(motion, 0)
    grows = {"zoom_in": 1, "zoom_out": -1}.get(motion, 0)
    y, x = torch.meshgrid(*2 * [torch.linspace(-1, 1, size)], indexing="ij")
    for _ in range(OBJECTS):
        pace = rng.uniform(0.7, 1.3)
        path = pace * seconds[:, None] * torch.tensor(direction)
        centre = torch.from_numpy(rng.uniform(-0.7, 0.7, 2)).float() + path
        centre = (centre + 1.4) % 2.8 - 1.4  # out on one side, in on the other
        growth = torch.exp(0.7 * pace * seconds * grows)
        radius = rng.uniform(0.35, 0.5) * growth
        away = torch.hypot(x - centre[:, 0].view(-1, 1, 1), y - centre[:, 1].view(-1, 1, 1))
        near = away < radius.view(-1, 1, 1)
        turn, place = 2.5 * pace * seconds * turns, rng.uniform(-0.4, 0.4, 2)
        shown = _look(texture, size, -centre, turn, -growth.log(), place)
        picture = torch.where(near.unsqueeze(1), shown, picture)
    return (picture * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _look(
    texture: Tensor, size: int, shift: Tensor, turn: Tensor, growth: Tensor, place: np.ndarray = ORIGIN
) -> Tensor:
    """A texture f32 [3, S, S] seen in each of n frames, f32 [n, 3, size, size]: shifted, then turned and scaled."""
    around = rotation(turn) * (SCALE * growth.exp()).view(-1, 1, 1)
    look = torch.cat([around, (around @ shift.unsqueeze(2))], dim=2)
    look[:, :, 2] += torch.from_numpy(place).float()
    grid = F.affine_grid(look, [len(shift), 3, size, size], align_corners=False)
    pictures = texture.expand(len(shift), -1, -1, -1)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


FORMS = {"easy": motion_video, "hard": hard_video}


def make(form: str, folder: Path, textures: int) -> Path:
    """The manifest of a form's videos below a folder; made once."""
    home = folder / f"{form}-{textures}"
    videos, data = home / "videos", home / "data"
    if not (data / "manifest.parquet").exists():
        write_motion_videos(videos, textures, draw=FORMS[form])
        lists = [str(videos / name) for name in ("trainlist01.txt", "testlist01.txt")]
        prepare(videos, data, splits=lists, groups=str(videos / "groups.tsv"))
    return data / "manifest.parquet"


def load(manifest_path: Path, *configs: DataConfig) -> Footage:
    """Every video that has room for a context and a target of each of these, decoded, and shrunk where it is large."""
    manifest, annotations = read_manifest(str(manifest_path)), read_annotations(str(manifest_path))
    fitting = (usable_rows(manifest, replace(config, split=None), clips=2)[0] for config in configs)
    rows = reduce(np.intersect1d, fitting)
    frames, times = [], []
    for row in rows:
        reader = open_video(manifest[row])
        moments = frame_times(reader)
        times.append(moments)
        frames.append(shrink(read_frames(reader, np.arange(len(moments)))))
    groups = np.array([annotations.groups[row] or "" for row in rows])
    parts = np.array([annotations.splits[row] or "" for row in rows])
    trained = sorted(set(groups[parts == "train"]))
    parts = np.where(np.isin(groups, trained[::5]) & (parts == "train"), "validation", parts)
    durations = [manifest[row].duration for row in rows]
    labels = np.array([annotations.labels[row] or "" for row in rows])
    return Footage(frames, times, durations, labels, groups, parts)


def shrink(frames: np.ndarray) -> np.ndarray:
    """u8 [n, H, W, 3], the short side LARGEST at most."""
    if min(frames.shape[1:3]) <= LARGEST:
        return frames
    images = V.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [LARGEST], antialias=True)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def batches(
    footage: Footage, rows: np.ndarray, config: DataConfig, batch: int, seed: int, tokens: int
) -> Iterator[Batch]:
    """Global batches of a run, as training would draw them, without end."""
    step = 0
    while True:
        samples = []
        for epoch, position in global_batch_keys(step, len(rows), batch, seed):
            row = int(rows[position])
            rng = np.random.default_rng((seed, epoch, row))
            read = footage.frames[row].__getitem__
            samples.append(
                draw_sample(rng, footage.times[row], footage.durations[row], read, row, config, tokens)
            )
        yield collate(samples)
        step += 1


def views(footage: Footage, row: int, config: DataConfig, count: int) -> Tensor:
    """u8 [count, 3, T, size, size], evenly spread, as the evaluation sees a video."""
    indices = spread_clips(footage.times[row], footage.durations[row], count, config.frames, config.fps)
    clips = centre_view(footage.frames[row][indices.ravel()], config.size).unflatten(1, indices.shape)
    return clips.transpose(0, 1).contiguous()
