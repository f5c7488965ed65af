"""The Trainer's step on random clips, without videos or a run folder."""

import torch

from mofore.bad_updates import BadUpdatePolicy
from mofore.config import PretrainConfig
from mofore.models.ema import update_teacher
from mofore.parallel.engine import start_ranks
from mofore.startup import build_training_engine, empty_batch
from mofore.trainer import Trainer
from mofore.types import Batch

RANK_TIMEOUT = 600  # seconds


class TrainingStep(Trainer):
    """Each call makes one step: teacher, student, forecaster, update through DeepSpeed, EMA.

    Only what `Trainer.update` needs is set up.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.step = config, 0
        self.engine = build_training_engine(config, None, start_ranks(RANK_TIMEOUT))
        self.bad_updates = BadUpdatePolicy(config.bad_updates)
        self.batch = random_batch(config, self.engine.device)

    def __call__(self) -> None:
        update = self.update([self.batch], self.config.optimizer.lr)
        self.step += 1
        self.bad_updates.record(float(update.losses.total), update.grad_norm)
        module = self.engine.module
        update_teacher(module.teacher, module.student, self.config.teacher.momentum)


def random_batch(config: PretrainConfig, device: torch.device) -> Batch:
    """Random pixels and visible tokens in the run's shapes; gaps of half a second."""
    batch = empty_batch(config, config.global_batch, device)
    context, targets = (torch.randint_like(clips, 0, 256) for clips in batch[:2])
    visible = batch.visible
    if config.data.token_keep_ratio < 1:
        count = round(config.data.token_keep_ratio * config.tokens)
        orders = [torch.randperm(config.tokens) for _ in range(config.global_batch)]
        visible = torch.stack(orders)[:, :count].sort(dim=1).values.to(device)
    return Batch(context, targets, batch.gaps + 0.5, batch.rows, visible)
