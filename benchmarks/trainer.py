"""The training steps of one recipe, timed beside another recipe's, and the learning curve."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.objectives import Objective
from benchmarks.video_cache import VideoCache, sample_batches
from mofore.config import PretrainConfig
from mofore.errors import UserError
from mofore.optim import build_optimizer, parameter_groups
from mofore.schedules import learning_rate, teacher_momentum

WARMUP_STEPS, TIMED_STEPS = 5, 40
# Shares of the steps after which the encoder is evaluated for the curve; the end is one more point.
EVALUATE_AT = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)


class RecipeTrainer:
    """One recipe. The schedules of learning rate and momentum end at `steps`.

    Raises UserError if the train split is smaller than a batch.
    """

    def __init__(
        self,
        objective: Objective,
        config: PretrainConfig,
        cache: VideoCache,
        steps: int,
        seed: int,
    ) -> None:
        self.objective, self.steps = objective, steps
        self.optimizer_config, self.teacher_config = config.optimizer, config.teacher
        self.classes = np.unique(cache.labels, return_inverse=True)[1]
        rows, batch = cache.rows("train"), config.global_batch
        if len(rows) < batch:
            raise UserError(
                f"global_batch={batch} exceeds the {len(rows)} train videos: "
                f"give global_batch={len(rows)} or less."
            )
        ratio = config.teacher.token_keep_ratio
        self.batches = sample_batches(cache, rows, config.data, batch, seed, config.tokens, ratio)
        groups = parameter_groups(objective, config.optimizer.weight_decay)
        self.optimizer = build_optimizer(groups, config.optimizer)

    def step(self, number: int) -> float:
        """Make step `number`, counted from 0, and return its loss."""
        config, objective = self.optimizer_config, self.objective
        lr = learning_rate(number, self.steps, config.warmup_steps, config.lr, config.final_lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = next(self.batches)
        loss = objective.loss(batch, torch.from_numpy(self.classes[batch.rows.numpy()]))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), config.clip_grad or float("inf"))
        self.optimizer.step()
        start, end = self.teacher_config.momentum, self.teacher_config.final_momentum
        objective.update_ema(teacher_momentum(number, self.steps, start, end))
        return float(loss.detach())


def relative_step_cost(one: RecipeTrainer, reference: RecipeTrainer) -> float:
    """CPU time of a step of `one` / of the reference: medians of alternating steps.

    Both are trained by it, so neither can be used for a run afterwards.
    """
    times: dict[RecipeTrainer, list[float]] = {one: [], reference: []}
    for number in range(WARMUP_STEPS + TIMED_STEPS):
        for trainer, spent in times.items():
            start = time.process_time()
            trainer.step(number)
            spent.append(time.process_time() - start)
    medians = [statistics.median(spent[WARMUP_STEPS:]) for spent in times.values()]
    return medians[0] / medians[1]


def train(
    trainer: RecipeTrainer, minutes: float, evaluate: Callable[[int], float]
) -> tuple[float, list[list[float]]]:
    """Make all steps. Returns the mean of the last 50 losses, and the curve.

    evaluate: score after so many steps. Curve: [normalised seconds, score] at EVALUATE_AT.
    """
    losses, curve = [], []
    points = {max(1, round(share * trainer.steps)): share for share in EVALUATE_AT}
    for number in range(trainer.steps):
        losses.append(trainer.step(number))
        if number + 1 in points:
            seconds = round(60 * minutes * points[number + 1], 1)
            curve.append([seconds, evaluate(number + 1)])
    return statistics.mean(losses[-50:]), curve
