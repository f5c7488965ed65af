"""Pretraining, from a configuration to a run folder: the loop, and what stands before it.

torchrun --nproc_per_node 2 -m mofore.train experiment=demo data.manifest=DIR/manifest.parquet
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mofore.checkpoint import Checkpoint, find_checkpoint, save_checkpoint
from mofore.collapse import effective_rank, embedding_std
from mofore.config import PretrainConfig, asdict_plain, compose
from mofore.data.dataset import PretrainClips, usable_rows
from mofore.data.loader import RankBatches, batches_of, build_loader
from mofore.data.manifest import Manifest, read_manifest
from mofore.distributed import any_rank, gather, mean, rank, world
from mofore.ema import update_teacher
from mofore.engine import (
    MOMENTS,
    Engine,
    backward_and_step,
    build_engine,
    full_moment,
    full_weight,
    restore_optimizer,
    set_rate,
    start_ranks,
)
from mofore.errors import UserError
from mofore.metrics import MetricsLog, Stopwatch
from mofore.optim import build_optimizer, parameter_groups
from mofore.preemption import StopRequest
from mofore.pretraining import build_pretraining
from mofore.run import check_run, claim_run
from mofore.schedules import learning_rate, teacher_momentum
from mofore.types import Batch, Losses

RANK_ROWS = 256  # embeddings that the logged effective rank is taken over, at most


class Outcome(NamedTuple):
    step: int  # updates made since the run began
    stopped_by: str | None  # the signal that ended the run early


def train(config: PretrainConfig) -> Outcome:
    """Run until `config.steps`, going on from the run folder's newest checkpoint if it has one.

    Raises UserError for what the user can mend, a non-finite loss among it.
    """
    run_dir, manifest = Path(config.run_dir), read_manifest(config.data.manifest)
    rows, short = usable_rows(manifest, config.data, clips=2)
    device = start_ranks(config.engine.timeout)
    check_run(config, run_dir)
    newest = find_checkpoint(run_dir)
    checkpoint = Checkpoint(newest, manifest.digest) if newest else None
    start = checkpoint.step if checkpoint else 0
    loader = load_batches(config, manifest, rows, start, device)
    if rank() == 0:
        claim_run(config, run_dir, manifest.digest, world())
        announce(manifest, config, len(rows), short)
    if start >= config.steps:
        return Outcome(start, None)
    engine = build(config, checkpoint, device)
    accumulation, rates, watch = engine.gradient_accumulation_steps(), config.optimizer, Stopwatch()

    log = MetricsLog(run_dir, start, config.steps) if rank() == 0 else None
    with StopRequest() as stop, contextlib.closing(log) if log else contextlib.nullcontext():
        for step in range(start, config.steps):
            rate = learning_rate(step, config.steps, rates.warmup, rates.lr, rates.final_lr)
            momentum = teacher_momentum(step, config.steps, *config.teacher.ends)
            micro_batches = [to_device(watch.wait(loader), device) for _ in range(accumulation)]
            # Stochastic depth, the same after a resume: after the loader, whose start draws a number too.
            torch.manual_seed(hash_seed(config.seed, step, rank()))

            set_rate(engine, rate)
            losses, keys, norm = update(engine, micro_batches, step + 1, manifest)
            update_teacher(engine.module.teacher, engine.module.student, momentum)

            gap = mean(torch.cat([batch.gaps for batch in micro_batches]).mean())
            seconds, waited = watch.lap()
            if log:
                log.write(
                    step=step + 1, loss=losses.total, forecast=losses.forecast, contrast=losses.contrast,
                    contrast_accuracy=losses.contrast_accuracy, lr=rate, momentum=momentum, grad_norm=norm,
                    samples_per_second=config.global_batch / seconds, data_wait=waited, gap_mean=gap,
                    effective_rank=effective_rank(keys[:RANK_ROWS]), embedding_std=embedding_std(keys),
                )  # fmt: skip
            stopping = any_rank(stop.name is not None, device)
            if stopping or (step + 1) % config.checkpoint.every == 0 or step + 1 == config.steps:
                meta = {"manifest_digest": manifest.digest, "config": asdict_plain(config)}
                save_checkpoint(run_dir, step + 1, state_of(engine), meta, config.checkpoint.keep_last)
            if stopping:
                return Outcome(step + 1, stop.name or "a signal on another rank")
    return Outcome(config.steps, None)


def load_batches(
    config: PretrainConfig, manifest: Manifest, rows: np.ndarray, start: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches from step `start` on."""
    micro_batch, _ = config.cut_batch(world())
    keys = RankBatches(
        len(rows), config.global_batch, micro_batch, config.seed, start, config.steps, rank(), world()
    )
    clips = PretrainClips(manifest, config.data, rows, config.seed)
    return batches_of(build_loader(clips, keys, config.workers, pin_memory=device.type == "cuda"))


def build(config: PretrainConfig, checkpoint: Checkpoint | None, device: torch.device) -> Engine:
    """The engine in the state of the checkpoint, or with fresh weights."""
    micro_batch, accumulation = config.cut_batch(world())
    model = build_pretraining(config.model(), config.seed)
    if checkpoint:
        checkpoint.load_weights(model)
    optimizer = build_optimizer(parameter_groups(model, config.optimizer.weight_decay), config.optimizer)
    engine = build_engine(model, optimizer, config.engine, micro_batch, accumulation, config.optimizer.clip)
    if checkpoint:
        restore_optimizer(engine, empty_batch(config, micro_batch, device), checkpoint.read, checkpoint.step)
    return engine


def update(
    engine: Engine, micro_batches: list[Batch], step: int, manifest: Manifest
) -> tuple[Losses, Tensor, float]:
    """One update from all micro-batches: the mean losses over ranks, the keys [M, D] of the global batch, and
    the norm of the gradient before clipping.

    Raises UserError, on every rank and before the weights are touched, where a loss is not finite.
    """
    with torch.no_grad():
        targets = [engine(batch) for batch in micro_batches]
    own = torch.cat([target.keys.flatten(0, 1) for target in targets])
    keys, first, seen = gather(own), rank() * len(own), []
    for batch, target in zip(micro_batches, targets, strict=True):
        losses = engine(batch, target, keys, first)
        seen.append(mean(torch.stack([loss.detach() for loss in losses])))
        if not seen[-1].isfinite().all():
            raise UserError(non_finite(losses, batch, step, manifest))
        norm = backward_and_step(engine, losses.total)
        first += len(own) // len(micro_batches)
    assert norm is not None, "the last micro-batch of a step makes the update"
    return Losses(*torch.stack(seen).mean(dim=0)), keys, norm


def non_finite(losses: Losses, batch: Batch, step: int, manifest: Manifest) -> str:
    """The message of a run that cannot go on."""
    videos = ", ".join(manifest[int(row)].uri for row in gather(batch.rows).tolist()[:8])
    return (
        f"step {step}: the loss is not finite (forecast {losses.forecast.item()}, contrast "
        f"{losses.contrast.item()} on rank {rank()}). Samples of this micro-batch: {videos}, ... "
        "The last checkpoint is untouched. Lower optimizer.lr or optimizer.clip, or look at these videos."
    )


def state_of(engine: Engine) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, gather) of every tensor of the run; the names are the checkpoint's."""
    for name, parameter in engine.module.named_parameters():
        yield f"weights/{name}", partial(full_weight, parameter)
        if parameter.requires_grad:
            for key in MOMENTS:
                yield f"{key}/{name}", partial(full_moment, engine, parameter, key)


def hash_seed(*parts: int) -> int:
    """One 63-bit seed of several numbers."""
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % 2**63
    return seed


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))


def empty_batch(config: PretrainConfig, videos: int, device: torch.device) -> Batch:
    """Black clips of the run's shapes, for the empty update of a resume."""
    data = config.data
    clip = (3, data.frames, data.size, data.size)
    return to_device(
        Batch(
            torch.zeros(videos, *clip, dtype=torch.uint8),
            torch.zeros(videos, data.targets, *clip, dtype=torch.uint8),
            torch.zeros(videos, data.targets),
            torch.zeros(videos, dtype=torch.int64),
        ),
        device,
    )


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
    """Exit code 0: reached the last step; 2: a mistake to mend; 75: stopped by a signal, go on later (EX_TEMPFAIL)."""
    try:
        config = compose(PretrainConfig, overrides)
        outcome = train(config)
    except UserError as mistake:
        print(f"mofore: {mistake}", file=sys.stderr)
        return 2
    if rank() == 0:
        where = f"{config.run_dir} (step {outcome.step} of {config.steps})"
        ended = f"stopped by {outcome.stopped_by}; the same command goes on" if outcome.stopped_by else "done"
        print(f"{ended}: {where}", flush=True)
    return 75 if outcome.stopped_by else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
