"""Pretraining, from a configuration to a run folder: the loop, and what stands before it.

torchrun --nproc_per_node 2 -m mofore.train experiment=demo data.manifest=DIR/manifest.parquet
"""

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofore.checkpoint import Checkpoint
from mofore.collapse import effective_rank, embedding_std
from mofore.config import PretrainConfig, asdict_plain, compose
from mofore.data.dataset import usable_rows
from mofore.data.loader import global_batch_keys
from mofore.data.manifest import Manifest, read_manifest
from mofore.distributed import gather, mean, most, rank, world
from mofore.ema import update_teacher
from mofore.engine import (
    Engine,
    backward_and_step,
    fingerprint,
    held_state,
    set_rate,
    start_ranks,
    state_shapes,
)
from mofore.errors import UserError
from mofore.guard import BadSteps, Fate, Guard
from mofore.heartbeat import LOST, Heartbeat, RankLost, agree, meeting
from mofore.metrics import MetricsLog, Stopwatch
from mofore.preemption import StopRequest
from mofore.resume import build, check_room, go_back, load_batches, rank_batches, resume_from
from mofore.run import check_run, claim_run, hold_run
from mofore.saving import Saver
from mofore.schedules import learning_rate, teacher_momentum
from mofore.types import Batch, Keys, Losses, Targets
from mofore.watchdog import Watchdog, held_clips

RANK_ROWS = 256  # embeddings that the logged effective rank is taken over, at most


class Outcome(NamedTuple):
    step: int  # updates made since the run began
    stopped_by: str | None  # the signal that ended the run early


def train(config: PretrainConfig) -> Outcome:
    """Run until `config.steps`, going on from the run folder's newest whole checkpoint if it has one.

    Raises UserError for what the user can mend, RankLost where another rank died or hangs.
    """
    run_dir, manifest = Path(config.run_dir), read_manifest(config.data.manifest)
    rows, short = usable_rows(manifest, config.data, clips=2)
    with meeting(config.engine.timeout):
        device = start_ranks(config.engine.timeout)
    check_run(config, run_dir)
    rank_batches(config, len(rows), 0)  # what does not divide is told before anything is made
    with Heartbeat(config.engine.timeout) as heart, hold_run(run_dir):
        heart.at("reads its checkpoint")
        newest = resume_from(run_dir, manifest)
        if newest and newest.step >= config.steps:
            return Outcome(newest.step, None)
        heart.at("builds the model")
        engine = build(config, newest, device)
        check_room(config, engine)
        if rank() == 0:
            claim_run(config, run_dir, manifest.digest, world())
            announce(manifest, config, len(rows), short)
        saver = Saver(run_dir, config.checkpoint, state_shapes(engine))
        outcome = run_steps(config, engine, manifest, rows, newest, saver, heart)
        heart.rest()  # a copy to another place may take its time, and other ranks have none to make
        saver.close()
    return outcome


def run_steps(
    config: PretrainConfig, engine: Engine, manifest: Manifest, rows: np.ndarray, newest: Checkpoint | None,
    saver: Saver, heart: Heartbeat,
) -> Outcome:  # fmt: skip
    """The loop. Every number in it but weights and moments is a function of the step."""
    run_dir, device, rates = Path(config.run_dir), engine.device, config.optimizer
    step, stopped_by = newest.step if newest else 0, None  # updates tried since the run began
    batches = load_batches(config, manifest, rows, step, device)
    guard, bad_steps = Guard(config.guard, newest.meta["guard"] if newest else None), BadSteps(run_dir)
    held = held_clips(config.watch, manifest, config.data, rows) if config.watch.every else None
    watchdog = Watchdog(config.watch, held, config.cut_batch(world())[0])
    meta = {"manifest_digest": manifest.digest, "config": asdict_plain(config), "world": world()}
    log = MetricsLog(run_dir, step, config.steps) if rank() == 0 else None
    watch, accumulation = Stopwatch(), engine.gradient_accumulation_steps()
    with StopRequest() as stop, _closing(log):
        while step < config.steps and not stopped_by:
            rate = learning_rate(step, config.steps, rates.warmup, rates.lr, rates.final_lr)
            momentum = teacher_momentum(step, config.steps, *config.teacher.ends)
            heart.at("waits for data")
            micro_batches = [to_device(watch.wait(batches), device) for _ in range(accumulation)]
            heart.at(f"computes step {step + 1}")
            # Stochastic depth, the same after a resume: after the loader, whose start draws a number too.
            torch.manual_seed(hash_seed(config.seed, step, rank()))
            set_rate(engine, rate)
            losses, keys, norm = update(engine, micro_batches, guard)
            step += 1
            fate = guard.note(float(losses.total), norm)
            if fate is Fate.taken:
                update_teacher(engine.module.teacher, engine.module.student, momentum)
            elif fate is Fate.back:
                step = go_back(config, engine, saver, guard, bad_steps, step, manifest, rows)
                batches = load_batches(config, manifest, rows, step, device)
                if log:
                    log.rewind(step)
                continue
            if step % config.engine.compare_every == 0:
                agree(step, same_everywhere(config, engine, losses, micro_batches, step, rows))
            health = watchdog.look(engine) if watchdog.due(step) else None
            gap = mean(torch.cat([batch.gaps for batch in micro_batches]).mean())
            seconds, waited = watch.lap()
            if log:
                log.write(
                    step=step, loss=losses.total, forecast=losses.forecast, contrast=losses.contrast,
                    contrast_accuracy=losses.contrast_accuracy, lr=rate, momentum=momentum, grad_norm=norm,
                    samples_per_second=config.global_batch / seconds, data_wait=waited, gap_mean=gap,
                    effective_rank=effective_rank(keys[:RANK_ROWS]), embedding_std=embedding_std(keys),
                    skipped=guard.skipped, **(health.named() if health else {}),
                )  # fmt: skip
            stopping, writing = most([stop.name is not None, saver.writing], device)
            if saver.open and not writing:
                saver.settle()
            if stopping:
                stopped_by = stop.name or "a signal on another rank"
            if stopping or step == config.steps or (saver.due(step) and not guard.streak):
                heart.at(f"saves step {step}")
                saver.save(step, held_state(engine), {**meta, "guard": guard.state})
            alarm = health and watchdog.judge(health)
            if alarm:
                saver.wait()
                watchdog.act(alarm, run_dir, step)
        heart.at(f"writes step {step}")
        saver.wait()
    return Outcome(step, stopped_by)


def update(engine: Engine, micro_batches: list[Batch], guard: Guard) -> tuple[Losses, Tensor, float]:
    """One update from all micro-batches: the mean losses over ranks, the target keys [M, D] of the global batch, and
    the norm of the gradient before clipping; it is not finite where the update was not made.
    """
    with torch.no_grad():
        targets: list[Targets] = [engine(batch) for batch in micro_batches]
    keys = Keys(*(gather(kind) for kind in Keys.joined([target.keys for target in targets])))
    first, seen, norm, allowed = rank() * sum(len(batch.rows) for batch in micro_batches), [], None, True
    for batch, target in zip(micro_batches, targets, strict=True):
        losses = engine(batch, target, keys, first)
        seen.append(torch.stack([loss.detach() for loss in losses]))
        if len(seen) == len(micro_batches):
            total = Losses(*mean(torch.stack(seen).mean(dim=0)))
            # a loss that is not finite shows in the gradient; only a spike must be known before it
            allowed = guard.config.spike is None or guard.allows(float(total.total))
        norm = backward_and_step(engine, losses.total, allowed)
        first += len(batch.rows)
    assert norm is not None, "the last micro-batch of a step makes the update"
    return total, keys.targets, norm


def same_everywhere(
    config: PretrainConfig, engine: Engine, losses: Losses, micro_batches: list[Batch], step: int, rows: np.ndarray
) -> dict[str, object]:  # fmt: skip
    """What no rank may see otherwise: the samples of the step, its loss, and the weights where all hold them."""
    keys = global_batch_keys(step - 1, len(rows), config.global_batch, config.seed)
    expected = rows[[position for _, position in keys]]
    share = len(expected) // world()
    seen = torch.cat([batch.rows for batch in micro_batches]).tolist()
    return {
        "loss": float(losses.total),
        "samples": hashlib.sha256(expected.tobytes()).hexdigest()[:12],
        "samples as drawn": seen == expected[rank() * share : (rank() + 1) * share].tolist(),
        "weights": fingerprint(engine, step // config.engine.compare_every),
    }


def hash_seed(*parts: int) -> int:
    """One 63-bit seed of several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed


def _closing(log: MetricsLog | None) -> contextlib.AbstractContextManager:
    return contextlib.closing(log) if log else contextlib.nullcontext()


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def announce(manifest: Manifest, config: PretrainConfig, videos: int, short: int) -> None:
    """What the run will see, before it begins."""
    data = config.data
    print(f"{videos} videos of {manifest.path}; run folder {config.run_dir}", flush=True)
    if short:
        print(f"{short} videos left out: too short for two clips of {data.frames} frames at {data.fps} fps.")
    slow = int((manifest.column("fps") < 0.99 * data.fps).sum())
    if slow:
        print(
            f"{slow} videos have fewer frames a second than data.fps={data.fps}: their clips repeat frames."
        )


def main(overrides: list[str]) -> int:
    """Exit code 0: reached the last step; 2: a mistake to mend; 75 (EX_TEMPFAIL): stopped by a signal or for want
    of a rank, the same command goes on; 130: stopped at once by a second Ctrl-C.
    """
    try:
        config = compose(PretrainConfig, overrides)
        outcome = train(config)
    except UserError as mistake:
        print(f"mofore: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "mofore: stopped at once; the last checkpoint stands, the same command goes on.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(130)
    except RankLost as reason:
        print(
            f"mofore: rank {rank()} stops: {reason}. The same command goes on.", file=sys.stderr, flush=True
        )
        os._exit(LOST)  # an orderly end would wait for the rank that is gone
    if rank() == 0:
        where = f"{config.run_dir} (step {outcome.step} of {config.steps})"
        ended = f"stopped by {outcome.stopped_by}; the same command goes on" if outcome.stopped_by else "done"
        print(f"{ended}: {where}", flush=True)
    return 75 if outcome.stopped_by else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
