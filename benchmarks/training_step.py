"""The step of a run on random clips, without videos or a run folder."""

from typing import NamedTuple

from mofore.config import PretrainConfig, compose
from mofore.parallel.engine import start_ranks
from mofore.profiling import random_batch
from mofore.startup import build_training_engine
from mofore.step import TrainingStep, Update


class StepShape(NamedTuple):
    """Backbone, clip and batch of a step that is measured."""

    backbone: str
    frames: int
    size: int  # pixels of a side
    batch: int  # videos of a step
    overrides: tuple[str, ...] = ()  # of every configuration of this shape

    def config(self, *overrides: str) -> PretrainConfig:
        """The configuration of MoFore's step; it has no videos."""
        fixed = (
            f"backbone={self.backbone}",
            f"data.frames={self.frames}",
            f"data.size={self.size}",
            f"global_batch={self.batch}",
            "data.manifest=none",
        )
        return compose(PretrainConfig, [*fixed, *overrides, *self.overrides])


class RepeatedStep:
    """Each call makes one step on the same batch: teacher, student, update through DeepSpeed, EMA.

    batch: may be replaced between calls. The device is the rank's own.
    """

    def __init__(self, config: PretrainConfig) -> None:
        device = start_ranks(config.engine)
        self.engine = build_training_engine(config, None, device)
        self.step = TrainingStep(config, self.engine)
        self.batch = random_batch(config, config.global_batch, device)
        self.number = 0  # of the coming step

    def __call__(self) -> Update:
        update = self.step(self.number, [self.batch])
        self.number += 1
        return update
