"""One training step: teacher, student, forecaster, losses, update, teacher's average.

    teacher on all micro-batches -> keys of the global batch
    student and forecaster on one micro-batch after the other -> losses -> backward
    gradients averaged, clipped -> update -> teacher's average

The step starts work on the device and does not wait for it: what it returns are tensors. On a GPU
the host can so prepare the next step while this one runs.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mofore.config import PretrainConfig
from mofore.models.ema import update_teacher
from mofore.models.objective import StepStart
from mofore.parallel.collectives import all_gather, all_reduce_mean, get_rank
from mofore.parallel.engine import Engine, backward_and_step, set_lr
from mofore.schedules import learning_rate, teacher_momentum
from mofore.types import Batch, Keys, Losses


class Update(NamedTuple):
    """What one step did. Tensors are f32 on the device, and equal on every rank."""

    losses: Losses  # means over micro-batches and ranks
    grad_norm: Tensor  # [], L2, before clipping; not finite if the update was skipped
    mean_gap: Tensor  # [], seconds
    flags: Tensor  # [F], mean over the ranks of the flags that each gave
    keys: Tensor  # [M, D], the target keys of the global batch
    lr: float
    momentum: float


class TrainingStep:
    """Makes the steps of one run.

    may_apply: judges the step's loss before the update, which makes the host wait for the loss;
    None: only a loss or gradient that is not finite skips an update.
    """

    def __init__(
        self,
        config: PretrainConfig,
        engine: Engine,
        may_apply: Callable[[float], bool] | None = None,
    ) -> None:
        self.config, self.engine, self.may_apply = config, engine, may_apply

    def __call__(
        self, step: int, micro_batches: list[Batch], flags: tuple[float, ...] = ()
    ) -> Update:
        """Make step `step`, counted from 0, from all micro-batches of this rank.

        A loss or gradient that is not finite on any rank changes nothing on all of them. flags:
        numbers of this rank that all ranks learn the mean of.
        """
        # Seeds stochastic depth, the same after a resume. After the loader, whose start draws a
        # number too.
        torch.manual_seed(combine_seeds(self.config.seed, step, get_rank()))
        lr, momentum = self.schedule(step)
        set_lr(self.engine, lr)
        first = get_rank() * sum(len(batch.rows) for batch in micro_batches)
        start: StepStart = self.engine(micro_batches, first_video=first, gather=gather_keys)
        losses, grad_norm = start.losses, None
        seen: list[Tensor] = []
        for batch, target in zip(micro_batches, start.targets, strict=True):
            if seen:
                losses = self.engine(batch, target, start.keys, first)
            seen.append(torch.stack([loss.detach() for loss in losses]))
            total = losses.total
            if len(seen) == len(micro_batches):
                means = self._reduce(seen, micro_batches, flags)
                total = total * self._permission(means[0])
            grad_norm = backward_and_step(self.engine, total)
            first += len(batch.rows)
        assert grad_norm is not None, "the last micro-batch of a step updates"
        module = self.engine.module
        weight = grad_norm.isfinite().float() * (1.0 - momentum)
        update_teacher(module.teacher, module.student, weight)
        mean_losses, rest = Losses(*means[: len(Losses._fields)]), means[len(Losses._fields) :]
        return Update(mean_losses, grad_norm, rest[0], rest[1:], start.keys.targets, lr, momentum)

    def schedule(self, step: int) -> tuple[float, float]:
        """(learning rate, teacher momentum) of a step, counted from 0."""
        config, optimizer, teacher = self.config, self.config.optimizer, self.config.teacher
        lr = learning_rate(
            step, config.steps, optimizer.warmup_steps, optimizer.lr, optimizer.final_lr
        )
        momentum = teacher_momentum(step, config.steps, teacher.momentum, teacher.final_momentum)
        return lr, momentum

    def _reduce(
        self, seen: list[Tensor], micro_batches: list[Batch], flags: tuple[float, ...]
    ) -> Tensor:
        """Means over the ranks of the losses, the gap and the flags, in one collective."""
        gap = torch.cat([batch.gaps for batch in micro_batches]).mean()
        # torch.full runs on the device; torch.tensor would copy from the host and wait.
        numbers = [torch.full((), float(flag), device=gap.device) for flag in flags]
        return all_reduce_mean(torch.stack([*torch.stack(seen).mean(dim=0), gap, *numbers]))

    def _permission(self, loss: Tensor) -> Tensor:
        """1, or nan if the step's loss must not be applied: then no gradient is finite."""
        if self.may_apply is not None and not self.may_apply(float(loss)):
            return torch.full_like(loss, torch.nan)
        return torch.where(loss.isfinite(), 1.0, torch.nan)


def gather_keys(keys: Keys) -> Keys:
    """This rank's keys -> those of the global batch."""
    return Keys(*(all_gather(part) for part in keys))


def combine_seeds(*parts: int) -> int:
    """One 63-bit seed from several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed
