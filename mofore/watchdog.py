"""Is the encoder collapsing? A few videos, always the same, seen by the teacher every so many steps.

    held clips (two views of each video) -> teacher -> embeddings -> Health -> an alarm, after several bad looks

The loss falls when an encoder collapses, and a collapsed encoder is perfectly stable: so look at how many
dimensions the embeddings use, how far they spread, and whether a video is more like itself than like others.
"""

import os
import subprocess
import sys
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
from mofore.distributed import gather, rank, world
from mofore.errors import UserError
from mofore.types import Batch, Targets


class Action(Enum):
    warn = "warn"  # say so, and go on
    stop = "stop"  # end the run; the last checkpoint stands


@dataclass
class WatchConfig:
    """The watch for collapse. An alarm needs `patience` looks in a row below `min_rank` or `min_std`."""

    every: int = 100  # steps between two looks; 0: never
    videos: int = 32  # that are looked at, two clips each
    min_rank: float = 2.0  # effective rank (RankMe) of their embeddings
    min_std: float = 0.02  # deviation a dimension, times sqrt(D): 1 is isotropic
    patience: int = 3
    action: Action = Action.warn
    command: str | None = None  # for the shell, at an alarm; MOFORE_RUN, _STEP and _ALARM tell it which

    def __post_init__(self) -> None:
        if min(self.every, self.min_rank, self.min_std) < 0 or self.videos < 2 or self.patience < 1:
            raise UserError(
                f"watch: need videos={self.videos} of at least 2, patience={self.patience} of at least 1 and "
                f"every={self.every}, min_rank={self.min_rank}, min_std={self.min_std} not below 0."
            )


class Health(NamedTuple):
    """Of the held clips' embeddings."""

    rank: float  # RankMe, between 1 and min(2 * videos, D)
    std: float  # SimSiam's deviation a dimension, times sqrt(D)
    margin: float  # mean cosine of two views of a video minus that of views of two videos

    def named(self) -> dict[str, float]:
        """As metrics.jsonl has them."""
        return {f"held_{name}": value for name, value in self._asdict().items()}


def held_clips(config: WatchConfig, manifest: Manifest, data: DataConfig, rows: np.ndarray) -> Tensor:
    """This rank's share of the clips to look at, u8 [V, 2, 3, T, size, size]: always the same, evenly over the rows."""
    videos = max(min(config.videos, len(rows)) // world(), 1) * world()  # equal shares
    chosen = rows[np.linspace(0, len(rows) - 1, videos).astype(int)][rank() :: world()]
    views = EvaluationClips(manifest, data, chosen, 2)
    return torch.stack([views[i][0] for i in range(len(views))])


class Watchdog:
    """Looks at the teacher through clips that this rank holds, `at_once` of them at a time."""

    def __init__(self, config: WatchConfig, clips: Tensor | None, at_once: int) -> None:
        self.config, self.clips, self.at_once, self.bad = config, clips, at_once, 0

    def due(self, step: int) -> bool:
        return bool(self.config.every) and step % self.config.every == 0

    @torch.no_grad()
    def look(self, engine: Any) -> Health:
        """A collective where the engine's forward or the gathering is one."""
        assert self.clips is not None
        keys = []
        for clips in self.clips.split(self.at_once):
            none = torch.zeros(len(clips), clips.shape[1])
            batch = Batch(clips[:, 0], clips, none, none[:, 0].long(), none[:, :0].long())
            seen: Targets = engine(Batch(*(part.to(engine.device) for part in batch)))
            keys.append(seen.keys.targets)
        embeddings = gather(torch.cat(keys).unflatten(0, (-1, 2)))  # [videos, 2, D]
        return Health(
            float(effective_rank(embeddings.flatten(0, 1))),
            float(embedding_std(embeddings.flatten(0, 1))),
            float(_margin(embeddings)),
        )

    def judge(self, health: Health) -> str | None:
        """The alarm, once it has looked bad `patience` times in a row, and after as many looks again."""
        sick = not (health.rank >= self.config.min_rank and health.std >= self.config.min_std)
        self.bad = self.bad + 1 if sick else 0
        if self.bad == 0 or self.bad % self.config.patience:
            return None
        return (
            f"the encoder is collapsing: effective rank {health.rank:.2f} (watch.min_rank={self.config.min_rank:g}), "
            f"deviation {health.std:.3f} (watch.min_std={self.config.min_std:g}), stability margin {health.margin:.3f}. "
            "Raise loss.contrast or teacher.momentum, or lower optimizer.lr."
        )

    def act(self, alarm: str, run_dir: Path, step: int) -> None:
        """Say so, start the user's command, and stop the run with UserError where that is the action."""
        if rank() == 0:
            print(f"mofore: step {step}: {alarm}", file=sys.stderr, flush=True)
            if self.config.command:
                facts = {"MOFORE_RUN": str(run_dir), "MOFORE_STEP": str(step), "MOFORE_ALARM": alarm}
                run = {"args": self.config.command, "shell": True, "check": False, "env": os.environ | facts}
                threading.Thread(target=subprocess.run, kwargs=run).start()  # nothing waits for it
        if self.config.action is Action.stop:
            raise UserError(
                f"stopped at step {step}: {alarm} The last checkpoint stands (watch.action=stop)."
            )


def _margin(embeddings: Tensor) -> Tensor:
    """[videos, 2, D] -> mean cosine of a video's two views minus that of first and second views of different videos."""
    first, second = F.normalize(embeddings.float(), dim=-1).unbind(dim=1)
    cosine = first @ second.T
    videos = len(cosine)
    same = cosine.diagonal().mean()
    return same - (cosine.sum() - cosine.diagonal().sum()) / (videos * (videos - 1))
