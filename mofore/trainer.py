"""The Trainer owns a run's state; `Trainer.run` is the loop.

Every number in the loop except weights and moments is a function of the step, so nothing else is
saved.
"""

import contextlib
import hashlib
import logging
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mofore.bad_updates import BadUpdateLog, BadUpdatePolicy, UpdateOutcome
from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint
from mofore.checkpoint.saver import Saver
from mofore.collapse_monitor import CollapseMonitor, CollapseStats, monitor_clips
from mofore.config import PretrainConfig, to_plain_dict
from mofore.data.manifest import Manifest
from mofore.data.order import global_batch_indices
from mofore.errors import UserError
from mofore.metrics import MetricsLog
from mofore.parallel.collectives import get_rank, get_world_size
from mofore.parallel.engine import Engine
from mofore.parallel.liveness import Heartbeat, check_ranks_agree
from mofore.parallel.signals import StopRequest
from mofore.parallel.state import local_state, state_shapes, weight_checksum
from mofore.startup import load_batches, load_checkpoint
from mofore.step import TrainingStep
from mofore.step_report import Report, StepReporter
from mofore.types import Batch
from mofore.wandb_log import start_wandb

logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    step: int  # steps since the run began
    stopped_by: str | None  # the signal that ended the run early


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
        spike_check = config.bad_updates.spike_threshold is not None
        may_apply = self.bad_updates.should_apply if spike_check else None
        self.training_step = TrainingStep(config, engine, may_apply)
        self.reports: deque[Report] = deque()  # of steps whose numbers have not been read
        self.loss = math.nan  # of the last step that was read
        self.stopping = self.writing = False  # what any rank said in that step
        clips = None
        if config.collapse.every:
            clips = monitor_clips(config.collapse, manifest, config.data, rows)
        micro_batch, _ = config.split_batch(get_world_size())
        self.monitor = CollapseMonitor(config.collapse, clips, micro_batch)
        # On every rank: all of them learn if wandb refuses.
        wandb_log = start_wandb(config.wandb_project, self.run_dir, to_plain_dict(config))
        self.metrics = None
        if get_rank() == 0:
            self.metrics = MetricsLog(self.run_dir, self.step, config.steps, wandb_log)
        self.reporter = StepReporter(config, engine.device)

    def run(self) -> Outcome:
        """Train until the last step or a stop signal."""
        config, stopped_by = self.config, None
        batches = self.load_batches()
        with StopRequest() as stop, self.metrics or contextlib.nullcontext():
            while self.step < config.steps and not stopped_by:
                micro_batches = self.next_micro_batches(batches)
                self.heartbeat.set_activity(f"computes step {self.step + 1}")
                stats = self.make_step(micro_batches, stop)
                if not self.read_reports():
                    self.rollback()
                    batches = self.load_batches()
                    continue
                if self.step % config.engine.check_ranks_every == 0:
                    check_ranks_agree(self.step, self.rank_invariants(micro_batches))
                stopped_by = self.save_if_due(stop)
                self.check_collapse(stats)
            self.heartbeat.set_activity(f"writes step {self.step}")
            self.saver.wait()
        return Outcome(self.step, stopped_by)

    def load_batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the current step on."""
        return load_batches(self.config, self.manifest, self.rows, self.step, self.engine.device)

    def next_micro_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """The micro-batches of the coming step, on the device."""
        self.heartbeat.set_activity("waits for data")
        count = self.engine.gradient_accumulation_steps()
        return [self.reporter.timer.next_batch(batches) for _ in range(count)]

    def make_step(self, micro_batches: list[Batch], stop: StopRequest) -> CollapseStats | None:
        """Start the coming step, and measure the monitor's clips if it is time."""
        flags = (float(stop.name is not None), float(self.saver.writing))
        with self.reporter.communication(self.step) as communication:
            update = self.training_step(self.step, micro_batches, flags)
        self.step += 1
        stats = None
        if self.monitor.should_measure(self.step):
            stats = self.monitor.measure(self.engine)
        monitored = stats.as_metrics() if stats else {}
        self.reports.append(self.reporter.report(self.step, update, communication, monitored))
        return stats

    def read_reports(self) -> bool:
        """Record and log the steps before the newest, and that one too if something waits for it.

        The device may then still compute the newest. False if the run must be rolled back.
        """
        while len(self.reports) > 1 or (self.reports and self.needs_newest()):
            report = self.reports.popleft()
            self.loss, grad_norm, metrics, (self.stopping, self.writing) = report.read()
            if self.bad_updates.record(self.loss, grad_norm) is UpdateOutcome.rollback:
                return False
            if self.metrics:
                metrics["skipped_updates"] = self.bad_updates.skipped
                self.metrics.write(report.step, **metrics)
        return True

    def needs_newest(self) -> bool:
        """Whether the newest step's numbers must be known before the next step starts."""
        config = self.config
        return (
            self.stopping
            or self.step == config.steps
            or self.step % config.engine.check_ranks_every == 0
            or self.saver.should_save(self.step)
            or self.monitor.should_measure(self.step)
            or config.bad_updates.spike_threshold is not None
        )

    def rank_invariants(self, micro_batches: list[Batch]) -> dict[str, object]:
        """What must be equal on all ranks: samples, loss, and weights unless they are sharded."""
        config, world = self.config, get_world_size()
        expected = self.rows[self._sample_positions(self.step)]
        share = len(expected) // world
        own = expected[get_rank() * share : (get_rank() + 1) * share].tolist()
        return {
            "loss": self.loss,
            "samples": hashlib.sha256(expected.tobytes()).hexdigest()[:12],
            "samples as drawn": torch.cat([batch.rows for batch in micro_batches]).tolist() == own,
            "weights": weight_checksum(self.engine, self.step // config.engine.check_ranks_every),
        }

    def _sample_positions(self, step: int) -> list[int]:
        """Positions in `rows` of the global batch of a step (counted from 1)."""
        config = self.config
        keys = global_batch_indices(step - 1, len(self.rows), config.global_batch, config.seed)
        return [position for _, position in keys]

    def save_if_due(self, stop: StopRequest) -> str | None:
        """Save if it is time, on all ranks; returns the signal that stops the run on any rank."""
        if self.saver.pending and not self.writing:
            self.saver.commit()
        last = self.stopping or self.step == self.config.steps
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
            self.writing = True
        return (stop.name or "a signal on another rank") if self.stopping else None

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
        reason = self.bad_updates.reason
        last = self.step - len(self.reports)  # steps after it have begun, and are discarded
        self.reports.clear()
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
