"""A recipe's steps, what one costs beside another's, and all of them with looks at the encoder between."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import footage as videos
from benchmarks.footage import Footage
from benchmarks.objectives import Objective
from mofore.config import PretrainConfig
from mofore.errors import UserError
from mofore.optim import build_optimizer, parameter_groups
from mofore.schedules import learning_rate, teacher_momentum

WARMUP, ROUNDS = 5, 40  # steps of each before its cost is timed, and while it is
LOOKS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)  # of the steps: where the curves have points; the end is one more


class Trainer:
    """One recipe's steps. Rates and momenta end with the last of `steps`."""

    def __init__(
        self, objective: Objective, config: PretrainConfig, footage: Footage, steps: int, seed: int
    ) -> None:
        self.objective, self.steps = objective, steps
        self.rates, self.teacher = config.optimizer, config.teacher
        self.codes = np.unique(footage.labels, return_inverse=True)[1]
        rows = footage.rows("train")
        if len(rows) < config.global_batch:
            raise UserError(
                f"{len(rows)} videos to train on do not fill a batch: give global_batch={len(rows)} or less."
            )
        self.source = videos.batches(footage, rows, config.data, config.global_batch, seed, config.tokens)
        groups = parameter_groups(objective, self.rates.weight_decay)
        self.optimizer = build_optimizer(groups, self.rates)

    def step(self, number: int) -> float:
        rates, objective = self.rates, self.objective
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.steps, rates.warmup, rates.lr, rates.final_lr)
        batch = next(self.source)
        loss = objective.loss(batch, torch.from_numpy(self.codes[batch.rows.numpy()]))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), rates.clip or float("inf"))
        self.optimizer.step()
        objective.after(teacher_momentum(number, self.steps, *self.teacher.ends))
        return float(loss.detach())


def cost(one: Trainer, other: Trainer) -> float:
    """Time of a step of one / of the other: medians of steps that were made in turn. Both are trained by it."""
    times: dict[Trainer, list[float]] = {one: [], other: []}
    for number in range(WARMUP + ROUNDS):
        for each, spent in times.items():
            begin = time.process_time()
            each.step(number)
            spent.append(time.process_time() - begin)
    medians = [statistics.median(spent[WARMUP:]) for spent in times.values()]
    return medians[0] / medians[1]


def train(trainer: Trainer, minutes: float, look: Callable[[int], float]) -> tuple[float, list[list[float]]]:
    """All steps. Returns the mean of the last losses, and the curve: [seconds, what a look after so many steps found]."""
    losses, curve = [], []
    marks = {max(1, round(share * trainer.steps)): share for share in LOOKS}
    for number in range(trainer.steps):
        losses.append(trainer.step(number))
        if number + 1 in marks:
            curve.append([round(60 * minutes * marks[number + 1], 1), look(number + 1)])
    return statistics.mean(losses[-50:]), curve
