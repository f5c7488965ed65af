"""Detects a collapsing encoder: the teacher embeds the same few videos every n steps.

    two clips of each video -> teacher -> embeddings -> CollapseStats -> after several bad: alarm

The loss falls when an encoder collapses, and a collapsed encoder is perfectly stable. So this
measures how many dimensions the embeddings use, how far they spread, and whether a video is more
similar to itself than to others.
"""

import logging
import os
import subprocess
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mofore.collapse import effective_rank, embedding_std
from mofore.data.dataset import DataConfig, EvaluationClips
from mofore.data.manifest import Manifest
from mofore.errors import UserError
from mofore.parallel.collectives import all_gather, get_rank, get_world_size
from mofore.settings import setting
from mofore.types import Batch, Targets

logger = logging.getLogger(__name__)


class Action(Enum):
    warn = "warn"  # log a warning and continue
    stop = "stop"  # end the run; the last checkpoint is kept


@dataclass
class CollapseConfig:
    """An alarm needs `patience` measurements in a row below `min_rank` or `min_std`."""

    every: int = setting(100, "Steps between two measurements; 0 turns the monitor off.")
    batch_rank_every: int = setting(
        10, "Steps between two effective ranks of the batch's target keys in metrics.jsonl."
    )
    videos: int = setting(32, "Videos that are embedded, two clips of each.")
    min_rank: float = setting(2.0, "Smallest effective rank (RankMe) of a healthy encoder.")
    min_std: float = setting(0.02, "Smallest embedding std; isotropic embeddings have 1.")
    patience: int = setting(3, "Bad measurements in a row that raise an alarm.")
    action: Action = setting(Action.warn, "What an alarm does besides the warning.")
    command: str | None = setting(
        None, "Shell command at an alarm; gets MOFORE_RUN, MOFORE_STEP and MOFORE_ALARM."
    )

    def __post_init__(self) -> None:
        at_least_0 = min(self.every, self.min_rank, self.min_std) >= 0
        if not at_least_0 or self.videos < 2 or min(self.patience, self.batch_rank_every) < 1:
            raise UserError(
                f"collapse: videos={self.videos} must be at least 2, patience={self.patience} and "
                f"batch_rank_every={self.batch_rank_every} at least 1, every={self.every}, "
                f"min_rank={self.min_rank} and min_std={self.min_std} at least 0."
            )


class CollapseStats(NamedTuple):
    """Of the monitor clips' embeddings."""

    effective_rank: float  # RankMe, between 1 and min(2 * videos, D)
    embedding_std: float  # deviation per dimension (SimSiam), times sqrt(D)
    stability_margin: float  # mean cosine of two views of a video minus that of two videos

    def as_metrics(self) -> dict[str, float]:
        """By their names in metrics.jsonl."""
        return {f"monitor_{name}": value for name, value in self._asdict().items()}


def monitor_clips(
    config: CollapseConfig, manifest: Manifest, data: DataConfig, rows: np.ndarray
) -> Tensor:
    """This rank's share of the clips, u8 [V, 2, 3, T, size, size]; the same at every start."""
    world = get_world_size()
    videos = max(min(config.videos, len(rows)) // world, 1) * world  # equal shares
    chosen = rows[np.linspace(0, len(rows) - 1, videos).astype(int)][get_rank() :: world]
    views = EvaluationClips(manifest, data, chosen, 2)
    return torch.stack([views[i][0] for i in range(len(views))])


class CollapseMonitor:
    """Embeds the clips that this rank holds with the teacher, `batch_size` videos at a time.

    clips: from `monitor_clips`; None if the monitor is off. With a GPU they stay in pinned host
    memory and are copied at each measurement: 64 clips of 16 x 224 x 224 take 154 MB, which the
    steps in between need more.
    """

    def __init__(self, config: CollapseConfig, clips: Tensor | None, batch_size: int) -> None:
        if clips is not None and torch.cuda.is_available():
            clips = clips.pin_memory()
        self.config, self.clips, self.batch_size = config, clips, batch_size
        self.bad_measurements = 0  # in a row

    def should_measure(self, step: int) -> bool:
        return bool(self.config.every) and step % self.config.every == 0

    @torch.no_grad()
    def measure(self, engine: Any) -> CollapseStats:
        """A collective if the engine's forward or the gathering is one.

        The teacher sees all tokens of a clip, whatever teacher.token_keep_ratio is. The host waits
        for the device.
        """
        assert self.clips is not None
        keys = []
        for part in self.clips.split(self.batch_size):
            clips = part.to(engine.device, non_blocking=True)
            gaps = torch.zeros(len(clips), clips.shape[1], device=clips.device)
            rows, all_tokens = gaps[:, 0].long(), gaps[:, :0].long()
            batch = Batch(clips[:, 0], clips, gaps, rows, all_tokens, all_tokens)
            targets: Targets = engine(batch)
            keys.append(targets.keys.targets)
        embeddings = all_gather(torch.cat(keys).unflatten(0, (-1, 2)))  # [videos, 2, D]
        of_clips = embeddings.flatten(0, 1)
        stats = (effective_rank(of_clips), embedding_std(of_clips), _stability_margin(embeddings))
        return CollapseStats(*torch.stack(stats).tolist())

    def check(self, stats: CollapseStats) -> str | None:
        """An alarm after every `patience` bad measurements in a row."""
        rank, std, margin = stats
        healthy = rank >= self.config.min_rank and std >= self.config.min_std
        self.bad_measurements = 0 if healthy else self.bad_measurements + 1
        if healthy or self.bad_measurements % self.config.patience:
            return None
        return (
            f"The encoder is collapsing: effective rank {rank:.2f} "
            f"(collapse.min_rank={self.config.min_rank:g}), embedding std {std:.3f} "
            f"(collapse.min_std={self.config.min_std:g}), stability margin {margin:.3f}. Raise "
            "loss.contrastive_weight or teacher.momentum, or lower optimizer.lr."
        )

    def raise_alarm(self, alarm: str, run_dir: Path, step: int) -> None:
        """Log the alarm, start the user's command; UserError if collapse.action is stop."""
        if get_rank() == 0:
            logger.warning("Step %d: %s", step, alarm)
            if self.config.command:
                facts = {
                    "MOFORE_RUN": str(run_dir),
                    "MOFORE_STEP": str(step),
                    "MOFORE_ALARM": alarm,
                }
                command = {"args": self.config.command, "shell": True, "check": False}
                command |= {"env": os.environ | facts}
                threading.Thread(
                    target=subprocess.run, kwargs=command
                ).start()  # nothing waits for it
        if self.config.action is Action.stop:
            raise UserError(
                f"Stopped at step {step} (collapse.action=stop): {alarm} The last checkpoint is "
                "kept."
            )


def _stability_margin(embeddings: Tensor) -> Tensor:
    """[videos, 2, D] -> mean cosine of views of one video minus that of two videos."""
    first, second = F.normalize(embeddings.float(), dim=-1).unbind(dim=1)
    cosine = first @ second.T
    videos = len(cosine)
    same = cosine.diagonal().mean()
    return same - (cosine.sum() - cosine.diagonal().sum()) / (videos * (videos - 1))
