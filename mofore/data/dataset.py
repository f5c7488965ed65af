"""Datasets of clips: choose frames, decode them once, cut views; collate a LoadedBatch.

The random numbers of a sample depend only on (seed, epoch, row). They are the same on any rank, in
any worker, before and after a resume.
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

from mofore.data.decode import Reader, open_video, read_views
from mofore.data.manifest import Manifest, Video, read_splits
from mofore.data.storage import DecodeError
from mofore.data.views import (
    AugmentConfig,
    centre_view,
    crop_and_resize,
    draw_crop,
    draw_jitter,
    stack_jitters,
)
from mofore.data.windows import (
    GapConfig,
    clip_seconds,
    clips_fit,
    draw_windows,
    evenly_spaced_clips,
)
from mofore.errors import UserError
from mofore.settings import setting
from mofore.types import Batch, ColourJitter, LoadedBatch


@dataclass
class DataConfig:
    """Videos, and how clips are sampled from them. Raises UserError for a value out of range."""

    manifest: str = setting(MISSING, "Path of manifest.parquet, written by `mofore prepare`.")
    root: str | None = setting(
        None, "Folder or URL of the videos; null takes the one that the manifest names."
    )
    frames: int = setting(16, "Frames of a clip.")
    fps: float = setting(12.0, "Frames per second at which clips are sampled.")
    size: int = setting(224, "Height and width of a clip, in pixels.")
    targets: int = setting(1, "Target clips per context, each at its own gap.")
    token_keep_ratio: float = setting(
        0.5, "Share of a clip's tokens that the student sees, drawn per sample; 1 keeps all."
    )
    split: str | None = setting(None, "Split to pretrain on; null takes all videos.")
    gap: GapConfig = field(default_factory=GapConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        if min(self.frames, self.size, self.targets) < 1 or self.fps <= 0:
            raise UserError(
                f"data: frames={self.frames}, size={self.size} and targets={self.targets} must be "
                f"at least 1, and fps={self.fps} above 0."
            )
        if not 0 < self.token_keep_ratio <= 1:
            raise UserError(
                f"data.token_keep_ratio={self.token_keep_ratio} is a share of tokens: "
                "need 0 < token_keep_ratio <= 1."
            )


class Sample(NamedTuple):
    """One element of a LoadedBatch, without the batch dimension."""

    context: Tensor  # u8 [C, T, H, W]
    targets: Tensor  # u8 [K, C, T, H, W]
    gaps: Tensor  # f32 [K] seconds
    row: int  # row of the manifest
    visible: Tensor  # i64 [M] indices of the tokens that the student sees; M = 0: all
    teacher_visible: Tensor  # i64 [M'] indices of the tokens that the teacher sees; M' = 0: all
    jitter: ColourJitter  # of each clip: the context and the targets do not have it yet


class PretrainClips(Dataset[Sample]):
    """Pretraining samples, indexed by (epoch, position in `rows`). Each epoch differs.

    rows: i64 [n] rows of the manifest. tokens: number of tokens of a clip, from which those are
    drawn that student and teacher see; not used if both see all. teacher_keep_ratio: share of a
    clip's tokens that the teacher sees.

    Raises UserError if a video no longer decodes.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: DataConfig,
        rows: np.ndarray,
        seed: int,
        tokens: int = 0,
        teacher_keep_ratio: float = 1.0,
    ) -> None:
        self.manifest, self.config, self.rows = manifest, config, rows
        self.seed, self.tokens, self.teacher_keep_ratio = seed, tokens, teacher_keep_ratio

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        epoch, position = index
        row = int(self.rows[position])
        rng, video = np.random.default_rng((self.seed, epoch, row)), self.manifest[row]
        timeline = Timeline(video.frame_index().times, video.duration, video.height, video.width)
        with as_user_error(video), open_video(video) as reader:
            read = functools.partial(read_views, reader)
            config, ratio = self.config, self.teacher_keep_ratio
            return draw_sample(rng, timeline, read, row, config, self.tokens, ratio)


class Timeline(NamedTuple):
    """What is known of a video before it is read."""

    times: np.ndarray  # f64 [n] start times of the frames, in seconds
    duration: float  # seconds
    height: int  # pixels
    width: int


View = Callable[[np.ndarray], Tensor]  # frames u8 [m, H, W, 3] -> [m, ...]


def draw_sample(
    rng: np.random.Generator,
    timeline: Timeline,
    read: Callable[[np.ndarray, View], Tensor],
    row: int,
    config: DataConfig,
    tokens: int,
    teacher_keep_ratio: float = 1.0,
) -> Sample:
    """Draw clips, read their frames once, cut views, and draw their jitter and visible tokens.

    read: frame indices i64 [m] and a view of frames -> the views of these frames. tokens,
    teacher_keep_ratio: as in PretrainClips.
    """
    times, duration, height, width = timeline
    windows = draw_windows(
        rng, times, duration, config.frames, config.fps, config.targets, config.gap
    )
    indices = np.concatenate([windows.context[None], windows.targets])
    crop = draw_crop(rng, height, width, config.augment)
    view = functools.partial(crop_and_resize, crop=crop, size=config.size)
    images = read(indices.ravel(), view).unflatten(0, indices.shape)
    clips = images.transpose(1, 2).contiguous()
    jitter = stack_jitters([draw_jitter(rng, config.augment) for _ in clips])
    visible = draw_tokens(rng, config.token_keep_ratio, tokens)
    teacher_visible = draw_tokens(rng, teacher_keep_ratio, tokens)
    gaps = torch.from_numpy(windows.gaps)
    return Sample(clips[0], clips[1:], gaps, row, visible, teacher_visible, jitter)


def kept_tokens(ratio: float, tokens: int) -> int:
    """How many tokens of a clip a `token_keep_ratio` keeps: M; 0 if it keeps all."""
    return max(1, round(ratio * tokens)) if ratio < 1 else 0


def draw_tokens(rng: np.random.Generator, ratio: float, tokens: int) -> Tensor:
    """Indices of the tokens that are kept, ascending: i64 [M]. Draws nothing if all are."""
    count = kept_tokens(ratio, tokens)
    chosen = rng.permutation(tokens)[:count] if count else np.empty(0, dtype=np.int64)
    return torch.from_numpy(np.sort(chosen))


class EvaluationClips(Dataset[tuple[Tensor, int]]):
    """Views without augmentation, indexed by the position in `rows`: (views, row of the manifest).

    Views u8 [V, 3, T, size, size] are evenly spaced over the video, centre crop.

    Raises UserError if a video no longer decodes.
    """

    def __init__(
        self, manifest: Manifest, config: DataConfig, rows: np.ndarray, views: int
    ) -> None:
        self.manifest, self.config, self.rows, self.views = manifest, config, rows, views

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        row, config = int(self.rows[position]), self.config
        video = self.manifest[row]
        times = video.frame_index().times
        indices = evenly_spaced_clips(times, video.duration, self.views, config.frames, config.fps)
        with as_user_error(video), open_video(video) as reader:
            return read_clips(reader, indices, config.size), row


def read_clips(reader: Reader, indices: np.ndarray, size: int) -> Tensor:
    """Frame indices i64 [V, T] -> centred views without augmentation, u8 [V, 3, T, size, size].

    Raises DecodeError if a frame cannot be decoded.
    """
    view = functools.partial(centre_view, size=size)
    images = read_views(reader, indices.ravel(), view).unflatten(0, indices.shape)
    return images.transpose(1, 2).contiguous()


@contextlib.contextmanager
def as_user_error(video: Video) -> Iterator[None]:
    """Turn DecodeError into UserError: `prepare` decoded this video, so the file has changed."""
    try:
        yield
    except DecodeError as error:
        raise UserError(
            f"{video.uri} no longer decodes: {error.reason}. "
            "Restore the file, or run `mofore prepare` again."
        ) from None


def collate(samples: Sequence[Sample]) -> LoadedBatch:
    """Stack samples into one micro-batch."""
    batch = Batch(
        context=torch.stack([sample.context for sample in samples]),
        targets=torch.stack([sample.targets for sample in samples]),
        gaps=torch.stack([sample.gaps for sample in samples]),
        rows=torch.tensor([sample.row for sample in samples]),
        visible=torch.stack([sample.visible for sample in samples]),
        teacher_visible=torch.stack([sample.teacher_visible for sample in samples]),
    )
    return LoadedBatch(batch, stack_jitters([sample.jitter for sample in samples]))


def collate_unaugmented(samples: Sequence[Sample]) -> Batch:
    """Stack samples whose augmentation is off, so that their jitter would change nothing."""
    return collate(samples).batch


def usable_rows(manifest: Manifest, config: DataConfig, clips: int) -> tuple[np.ndarray, int]:
    """Rows i64 [n] of the videos long enough for `clips` clips, and the number of shorter ones.

    Raises UserError if no video is long enough, or none is in `data.split`.
    """
    rows = _rows_of_split(manifest, config.split)
    durations = manifest.column("duration")[rows]
    long_enough = np.array(
        [clips_fit(duration, config.frames, config.fps, clips) for duration in durations],
        dtype=bool,
    )
    if not long_enough.any():
        longest = float(durations.max()) if len(durations) else 0.0
        needed = clips * clip_seconds(config.frames, config.fps)
        raise UserError(
            f"{manifest.path}: no video is long enough. {clips} clips of data.frames="
            f"{config.frames} at data.fps={config.fps} take {needed:.2f} s; the longest of "
            f"{len(durations)} videos has {longest:.2f} s. Lower data.frames or raise data.fps."
        )
    return rows[long_enough], int((~long_enough).sum())


def _rows_of_split(manifest: Manifest, split: str | None) -> np.ndarray:
    """Rows i64 [n] of one split, or all. Raises UserError if there are none."""
    if split is None:
        return np.arange(len(manifest))
    splits = read_splits(manifest.path)
    rows = np.array([row for row, name in enumerate(splits) if name == split], dtype=int)
    if not len(rows):
        available = ", ".join(sorted({name for name in splits if name})) or "none"
        raise UserError(
            f"{manifest.path}: no video of data.split={split}; its splits: {available}."
        )
    return rows
