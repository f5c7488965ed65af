"""Videos -> samples: open, choose windows, decode once, cut views; then samples -> Batch.

The randomness of a sample comes from (seed, epoch, row) alone: it is the same on any rank, in any worker,
before or after a resume.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor
from torch.utils.data import Dataset

from mofore.data.decode import Undecodable, frame_times, open_video, read_frames
from mofore.data.manifest import Manifest, Video, read_splits
from mofore.data.views import AugmentConfig, centre_view, cut, draw_place, recolour
from mofore.data.windows import GapConfig, draw_windows, fits, span, spread_clips
from mofore.errors import UserError
from mofore.types import Batch


@dataclass
class DataConfig:
    """Clips and how they are drawn. A clip is `frames` moments, 1 / `fps` seconds apart."""

    manifest: str = MISSING  # manifest.parquet, written by `mofore prepare`
    frames: int = 16
    fps: float = 12.0
    size: int = 224  # pixels of a view's side
    targets: int = 1  # clips that a context is asked to forecast, each at a gap of its own [two targets]
    keep: float = 0.5  # share of a clip's tokens that the student sees, drawn anew for each sample; 1: all [half of the tokens]
    split: str | None = None  # pretrain on the videos of one split; None takes all
    gap: GapConfig = field(default_factory=GapConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if min(self.frames, self.size, self.targets) < 1 or self.fps <= 0:
            raise UserError(
                f"data: frames={self.frames}, size={self.size} and targets={self.targets} must be at least 1, "
                f"and fps={self.fps} above 0."
            )
        if not 0 < self.keep <= 1:
            raise UserError(f"data.keep={self.keep} is a share of tokens: give 0 < keep <= 1.")


class Sample(NamedTuple):
    """A batch of one, before it is stacked."""

    context: Tensor  # u8 [C, T, H, W]
    targets: Tensor  # u8 [K, C, T, H, W]
    gaps: Tensor  # f32 [K]
    row: int
    kept: Tensor  # i64 [M]


class PretrainClips(Dataset[Sample]):
    """Keys are (epoch, position): the same video gives another sample in every epoch.

    `tokens` is how many a clip has, to draw those that are kept from.
    """

    def __init__(
        self, manifest: Manifest, config: DataConfig, rows: np.ndarray, seed: int, tokens: int = 0
    ) -> None:
        self.manifest, self.config, self.rows, self.seed, self.tokens = manifest, config, rows, seed, tokens

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        row = int(self.rows[position])
        rng, video = np.random.default_rng((self.seed, epoch, row)), self.manifest[row]
        with told(video):
            reader = open_video(video)
            times = frame_times(reader)
            read = functools.partial(read_frames, reader)
            return draw_sample(rng, times, video.duration, read, row, self.config, self.tokens)


def draw_sample(
    rng: np.random.Generator, times: np.ndarray, duration: float, read: Callable[[np.ndarray], np.ndarray], row: int,
    config: DataConfig, tokens: int,
) -> Sample:  # fmt: skip
    """Windows, one read of their frames, and views. times: f64 [n] seconds; read: i64 [m] -> u8 [m, H, W, 3]."""
    windows = draw_windows(rng, times, duration, config.frames, config.fps, config.targets, config.gap)
    indices = np.concatenate([windows.context[None], windows.targets])
    frames = read(indices.ravel())
    place = draw_place(rng, frames.shape[1], frames.shape[2], config.augment)
    images = cut(frames, place, config.size).unflatten(0, indices.shape)
    clips = torch.stack([recolour(rng, clip, config.augment) for clip in images])
    kept = np.empty(0, dtype=np.int64)
    if config.keep < 1:
        kept = np.sort(rng.permutation(tokens)[: max(1, round(config.keep * tokens))])
    gaps = torch.from_numpy(windows.gaps)
    return Sample(clips[0], clips[1:], gaps, row, torch.from_numpy(kept))


class EvaluationClips(Dataset[tuple[Tensor, int]]):
    """Views u8 [V, 3, T, size, size] evenly spread over a video, centre crop, no augmentation; and its row."""

    def __init__(self, manifest: Manifest, config: DataConfig, rows: np.ndarray, views: int) -> None:
        self.manifest, self.config, self.rows, self.views = manifest, config, rows, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        row, config = int(self.rows[position]), self.config
        video = self.manifest[row]
        with told(video):
            reader = open_video(video)
            indices = spread_clips(frame_times(reader), video.duration, self.views, config.frames, config.fps)
            frames = read_frames(reader, indices.ravel())
        clips = centre_view(frames, config.size).unflatten(1, indices.shape)
        return clips.transpose(0, 1).contiguous(), row


@contextlib.contextmanager
def told(video: Video) -> Iterator[None]:
    """A video that decoded when the manifest was made, and no longer does, is the user's to mend."""
    try:
        yield
    except Undecodable as reason:
        raise UserError(
            f"{video.uri} no longer decodes: {reason.reason}. Put the file back, or run `mofore prepare` again."
        ) from None


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one micro-batch as a Batch."""
    return Batch(
        context=torch.stack([sample.context for sample in samples]),
        targets=torch.stack([sample.targets for sample in samples]),
        gaps=torch.stack([sample.gaps for sample in samples]),
        rows=torch.tensor([sample.row for sample in samples]),
        kept=torch.stack([sample.kept for sample in samples]),
    )


def usable_rows(manifest: Manifest, config: DataConfig, clips: int) -> tuple[np.ndarray, int]:
    """Rows i64 [n] of the videos with room for `clips` clips, and how many have none.

    Raises UserError where no video has room, or `data.split` names none.
    """
    chosen = np.arange(len(manifest))
    if config.split is not None:
        splits = read_splits(manifest.path)
        chosen = np.array([row for row, split in enumerate(splits) if split == config.split], dtype=int)
        if not len(chosen):
            named = ", ".join(sorted({split for split in splits if split})) or "none"
            raise UserError(f"{manifest.path}: no video of data.split={config.split}; its splits: {named}.")
    durations = manifest.column("duration")[chosen]
    room = np.array([fits(duration, config.frames, config.fps, clips) for duration in durations], dtype=bool)
    if not room.any():
        longest = float(durations.max()) if len(durations) else 0.0
        raise UserError(
            f"{manifest.path}: no video is long enough. {clips} clips of data.frames={config.frames} at "
            f"data.fps={config.fps} take {clips * span(config.frames, config.fps):.2f} s; the longest of "
            f"{len(durations)} videos has {longest:.2f} s. Lower data.frames or raise data.fps."
        )
    return chosen[room], int((~room).sum())
