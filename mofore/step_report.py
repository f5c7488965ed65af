"""One step's numbers: on the device, then on their way to the host, then read.

Update -> StepReporter.report -> Report, whose copy to the host has begun -> Report.read, later
"""

import contextlib
from typing import NamedTuple

import torch

from mofore.collapse import effective_rank, embedding_std
from mofore.compilation import compiled_graphs, should_compile
from mofore.config import PretrainConfig
from mofore.host_copy import HostCopy
from mofore.metrics import StepTimer, peak_memory_gib
from mofore.parallel.collectives import get_world_size
from mofore.profiling import Communication, build_step_cost, measure_communication
from mofore.step import Update

RANK_EMBEDDINGS = 256  # embeddings that the logged effective rank is computed from, at most
COMMUNICATION_EVERY = 200  # steps between two that are profiled for the time in collectives
# What the host reads of each step, by its name in metrics.jsonl; then the flags.
NUMBERS = (
    "loss",
    "forecast_loss",
    "contrastive_loss",
    "contrastive_accuracy",
    "grad_norm",
    "mean_gap",
    "embedding_std",
    "effective_rank",
)


class StepNumbers(NamedTuple):
    """One step's numbers, on the host."""

    loss: float
    grad_norm: float
    metrics: dict[str, float | None]  # by name in metrics.jsonl; None: not measured at this step
    flags: list[bool]  # whether any rank set it


class Report(NamedTuple):
    """One step's numbers on their way to the host."""

    step: int  # counted from 1
    numbers: HostCopy  # NUMBERS, then flags
    known: dict[str, float | None]  # what the host knew at once

    def read(self) -> StepNumbers:
        """Waits for the copy."""
        values = self.numbers.read()
        read = dict(zip(NUMBERS, values, strict=False))
        flags = [flag > 0 for flag in values[len(NUMBERS) :]]
        return StepNumbers(read["loss"], read["grad_norm"], {**read, **self.known}, flags)


class StepReporter:
    """Measures the steps of one run, and how long they take."""

    def __init__(self, config: PretrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.cost = build_step_cost(config, device)
        self.is_compiled = should_compile(config.engine, device)
        self.timer = StepTimer()

    def communication(self, step: int) -> contextlib.AbstractContextManager[Communication | None]:
        """A context around a step, counted from 0; some steps are profiled inside it."""
        if get_world_size() > 1 and step % COMMUNICATION_EVERY == COMMUNICATION_EVERY // 10:
            return measure_communication(self.device)
        return contextlib.nullcontext()

    def report(
        self,
        step: int,
        update: Update,
        communication: Communication | None,
        monitored: dict[str, float],
    ) -> Report:
        """Begin to copy a step's numbers to the host. step: counted from 1."""
        measures_rank = step % self.config.collapse.batch_rank_every == 0
        rank = torch.full_like(update.mean_gap, torch.nan)
        if measures_rank:
            rank = effective_rank(update.keys[:RANK_EMBEDDINGS])
        std = embedding_std(update.keys)
        numbers = [*update.losses, update.grad_norm, update.mean_gap, std, rank, *update.flags]
        seconds, waited = self.timer.lap()
        known: dict[str, float | None] = {
            "lr": update.lr,
            "teacher_momentum": update.momentum,
            "samples_per_second": self.config.global_batch / seconds,
            "data_wait_fraction": waited,
            "communication_fraction": communication.fraction if communication else None,
            "peak_memory_gib": peak_memory_gib(self.device),
            **self.cost.metrics(seconds),
            **monitored,
        }
        if not measures_rank:
            known["effective_rank"] = None
        if self.is_compiled:
            known["compiled_graphs"] = compiled_graphs()
        return Report(step, HostCopy(torch.stack(numbers)), known)
