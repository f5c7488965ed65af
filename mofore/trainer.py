"""The Trainer owns a run's state; `Trainer.run` is the loop.

Every number in the loop except weights and moments is a function of the step, so nothing else is
saved.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofore.bad_updates import BadUpdateLog, BadUpdatePolicy, UpdateOutcome
from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint
from mofore.checkpoint.saver import Saver
from mofore.collapse import effective_rank, embedding_std
from mofore.collapse_monitor import CollapseMonitor, CollapseStats, monitor_clips
from mofore.config import PretrainConfig, to_plain_dict
from mofore.data.loader import global_batch_indices
from mofore.data.manifest import Manifest
from mofore.errors import UserError
from mofore.metrics import MetricsLog, StepTimer
from mofore.models.ema import update_teacher
from mofore.parallel.collectives import (
    all_gather,
    all_reduce_max,
    all_reduce_mean,
    get_rank,
    get_world_size,
)
from mofore.parallel.engine import (
    Engine,
    backward_and_step,
    local_state,
    set_lr,
    state_shapes,
    weight_checksum,
)
from mofore.parallel.liveness import Heartbeat, check_ranks_agree
from mofore.parallel.signals import StopRequest
from mofore.schedules import learning_rate, teacher_momentum
from mofore.startup import load_batches, load_checkpoint
from mofore.types import Batch, Keys, Losses, Targets

logger = logging.getLogger(__name__)
RANK_EMBEDDINGS = 256  # embeddings that the logged effective rank is computed from, at most


class Outcome(NamedTuple):
    step: int  # steps since the run began
    stopped_by: str | None  # the signal that ended the run early


class Update(NamedTuple):
    """One optimizer step, the same on every rank."""

    losses: Losses  # mean over micro-batches and ranks
    keys: Tensor  # f32 [M, D], the target keys of the global batch
    grad_norm: float  # L2, before clipping; not finite if the update was skipped
    mean_gap: Tensor  # f32 [], seconds


class Trainer:
    """One run's engine, step, checkpoints, bad-update policy, collapse monitor and metrics."""

    def __init__(
        self,
        config: PretrainConfig,
        engine: Engine,
        manifest: Manifest,
        rows: np.ndarray,
        checkpoint: Checkpoint | None,
        heartbeat: Heartbeat,
    ) -> None:
        self.config, self.engine, self.heartbeat = config, engine, heartbeat
        self.manifest, self.rows = manifest, rows
        self.run_dir = Path(config.run_dir)
        self.step = checkpoint.step if checkpoint else 0
        self.saver = Saver(self.run_dir, config.checkpoint, state_shapes(engine))
        state = checkpoint.meta["bad_updates"] if checkpoint else None
        self.bad_updates = BadUpdatePolicy(config.bad_updates, state)
        self.bad_update_log = BadUpdateLog(self.run_dir)
        clips = None
        if config.collapse.every:
            clips = monitor_clips(config.collapse, manifest, config.data, rows)
        micro_batch, _ = config.split_batch(get_world_size())
        self.monitor = CollapseMonitor(config.collapse, clips, micro_batch)
        is_logging = get_rank() == 0
        self.metrics = MetricsLog(self.run_dir, self.step, config.steps) if is_logging else None
        self.timer = StepTimer()

    def run(self) -> Outcome:
        """Train until the last step or a stop signal."""
        config, stopped_by = self.config, None
        batches = self.load_batches()
        with StopRequest() as stop, self.metrics or contextlib.nullcontext():
            while self.step < config.steps and not stopped_by:
                lr, momentum = self.schedule()
                micro_batches = self.next_micro_batches(batches)
                self.heartbeat.set_activity(f"computes step {self.step + 1}")
                update = self.update(micro_batches, lr)
                self.step += 1
                outcome = self.bad_updates.record(float(update.losses.total), update.grad_norm)
                if outcome is UpdateOutcome.applied:
                    module = self.engine.module
                    update_teacher(module.teacher, module.student, momentum)
                elif outcome is UpdateOutcome.rollback:
                    self.rollback()
                    batches = self.load_batches()
                    continue
                if self.step % config.engine.check_ranks_every == 0:
                    check_ranks_agree(self.step, self.rank_invariants(update, micro_batches))
                stats = None
                if self.monitor.should_measure(self.step):
                    stats = self.monitor.measure(self.engine)
                self.log_step(update, lr, momentum, stats)
                stopped_by = self.save_if_due(stop)
                self.check_collapse(stats)
            self.heartbeat.set_activity(f"writes step {self.step}")
            self.saver.wait()
        return Outcome(self.step, stopped_by)

    def schedule(self) -> tuple[float, float]:
        """(learning rate, teacher momentum) of the coming step."""
        config, optimizer, teacher = self.config, self.config.optimizer, self.config.teacher
        lr = learning_rate(
            self.step, config.steps, optimizer.warmup_steps, optimizer.lr, optimizer.final_lr
        )
        momentum = teacher_momentum(
            self.step, config.steps, teacher.momentum, teacher.final_momentum
        )
        return lr, momentum

    def load_batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the current step on."""
        return load_batches(self.config, self.manifest, self.rows, self.step, self.engine.device)

    def next_micro_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of the coming step, on the device."""
        self.heartbeat.set_activity("waits for data")
        device, count = self.engine.device, self.engine.gradient_accumulation_steps()
        return [to_device(self.timer.next_batch(batches), device) for _ in range(count)]

    def update(self, micro_batches: list[Batch], lr: float) -> Update:
        """One optimizer step from all micro-batches, of every rank."""
        # Seeds stochastic depth, the same after a resume. After the loader, whose start draws a
        # number too.
        torch.manual_seed(combine_seeds(self.config.seed, self.step, get_rank()))
        set_lr(self.engine, lr)
        with torch.no_grad():
            targets: list[Targets] = [self.engine(batch) for batch in micro_batches]
        local_keys = Keys.concat([target.keys for target in targets])
        keys = Keys(*(all_gather(part) for part in local_keys))
        first = get_rank() * sum(len(batch.rows) for batch in micro_batches)
        seen, grad_norm = [], None
        for batch, target in zip(micro_batches, targets, strict=True):
            losses = self.engine(batch, target, keys, first)
            seen.append(torch.stack([loss.detach() for loss in losses]))
            allowed = True
            if len(seen) == len(micro_batches):
                mean_losses = Losses(*all_reduce_mean(torch.stack(seen).mean(dim=0)))
                # A non-finite loss shows in the gradient; only a spike must be known before the
                # update.
                if self.config.bad_updates.spike_threshold is not None:
                    allowed = self.bad_updates.should_apply(float(mean_losses.total))
            grad_norm = backward_and_step(self.engine, losses.total, allowed)
            first += len(batch.rows)
        assert grad_norm is not None, "the last micro-batch of a step updates"
        mean_gap = all_reduce_mean(torch.cat([batch.gaps for batch in micro_batches]).mean())
        return Update(mean_losses, keys.targets, grad_norm, mean_gap)

    def rank_invariants(self, update: Update, micro_batches: list[Batch]) -> dict[str, object]:
        """What must be equal on all ranks: samples, loss, and weights unless they are sharded."""
        config, world = self.config, get_world_size()
        expected = self.rows[self._sample_positions(self.step)]
        share = len(expected) // world
        own = expected[get_rank() * share : (get_rank() + 1) * share].tolist()
        return {
            "loss": float(update.losses.total),
            "samples": hashlib.sha256(expected.tobytes()).hexdigest()[:12],
            "samples as drawn": torch.cat([batch.rows for batch in micro_batches]).tolist() == own,
            "weights": weight_checksum(self.engine, self.step // config.engine.check_ranks_every),
        }

    def _sample_positions(self, step: int) -> list[int]:
        """Positions in `rows` of the global batch of a step (counted from 1)."""
        config = self.config
        keys = global_batch_indices(step - 1, len(self.rows), config.global_batch, config.seed)
        return [position for _, position in keys]

    def log_step(
        self, update: Update, lr: float, momentum: float, stats: CollapseStats | None
    ) -> None:
        """On rank 0: the step's line in metrics.jsonl, TensorBoard and the progress bar."""
        seconds, waited = self.timer.lap()
        if self.metrics is None:
            return
        self.metrics.write(
            step=self.step,
            loss=update.losses.total,
            forecast_loss=update.losses.forecast,
            contrastive_loss=update.losses.contrastive,
            contrastive_accuracy=update.losses.contrastive_accuracy,
            lr=lr,
            teacher_momentum=momentum,
            grad_norm=update.grad_norm,
            samples_per_second=self.config.global_batch / seconds,
            data_wait_fraction=waited,
            mean_gap=update.mean_gap,
            effective_rank=effective_rank(update.keys[:RANK_EMBEDDINGS]),
            embedding_std=embedding_std(update.keys),
            skipped_updates=self.bad_updates.skipped,
            **(stats.as_metrics() if stats else {}),
        )

    def save_if_due(self, stop: StopRequest) -> str | None:
        """Save if it is time, on all ranks; returns the signal that stops the run on any rank."""
        flags: list[float] = [stop.name is not None, self.saver.writing]
        stopping, writing = all_reduce_max(flags, self.engine.device)
        if self.saver.pending and not writing:
            self.saver.commit()
        last = bool(stopping) or self.step == self.config.steps
        due = self.saver.should_save(self.step) and not self.bad_updates.consecutive
        if last or due:
            self.heartbeat.set_activity(f"saves step {self.step}")
            meta = {
                "manifest_digest": self.manifest.digest,
                "config": to_plain_dict(self.config),
                "world_size": get_world_size(),
                "bad_updates": self.bad_updates.state,
            }
            self.saver.save(self.step, local_state(self.engine), meta)
        return (stop.name or "a signal on another rank") if stopping else None

    def check_collapse(self, stats: CollapseStats | None) -> None:
        """Raise UserError if the encoder collapses and collapse.action is stop."""
        alarm = self.monitor.check(stats) if stats else None
        if alarm:
            self.saver.wait()
            self.monitor.raise_alarm(alarm, self.run_dir, self.step)

    def rollback(self) -> None:
        """Load the last checkpoint after too many skipped updates, and record their samples.

        Raises UserError if there is no checkpoint, or if the same steps failed before.
        """
        self.saver.wait()
        last, reason = self.step, self.bad_updates.reason
        first = last - self.bad_updates.consecutive + 1
        repeated = self.bad_update_log.is_repeated(first)

        def sample_uris(step: int) -> list[str]:
            positions = self._sample_positions(step)
            return [self.manifest[int(self.rows[position])].uri for position in positions]

        self.bad_update_log.record(first, last, reason, sample_uris)
        checkpoint, _ = find_latest_checkpoint(self.run_dir)
        what = f"Steps {first} to {last} failed: {reason}"
        videos = f"Their videos: {self.bad_update_log.path}."
        if repeated or checkpoint is None:
            why = "again, with the same samples" if repeated else "and there is no checkpoint yet"
            raise UserError(
                f"{what}, {why}. {videos} The last checkpoint is kept. Lower optimizer.lr or "
                "optimizer.clip_grad, or check these videos."
            )
        if get_rank() == 0:
            logger.warning("%s. Rolling back to step %d. %s", what, checkpoint.step, videos)
        load_checkpoint(self.engine, checkpoint)
        self.bad_updates.restore(checkpoint.meta["bad_updates"])
        self.step = checkpoint.step
        if self.metrics:
            self.metrics.rewind(self.step)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def combine_seeds(*parts: int) -> int:
    """One 63-bit seed from several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed
