"""Where a run goes on from: its newest whole checkpoint, or the last good one after a streak of bad updates.

run folder, manifest -> Checkpoint or None -> engine in that state, batches from that step on
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mofore.checkpoint import Checkpoint, find_checkpoint, set_aside
from mofore.config import PretrainConfig
from mofore.data.dataset import PretrainClips
from mofore.data.loader import RankBatches, batches_of, build_loader, global_batch_keys
from mofore.data.manifest import Manifest
from mofore.distributed import from_rank_0, rank, world
from mofore.engine import Engine, build_engine, fill_state, make_moments, state_shapes
from mofore.errors import UserError
from mofore.guard import BadSteps, Guard
from mofore.optim import build_optimizer, parameter_groups
from mofore.pretraining import build_pretraining
from mofore.saving import Saver, check_space
from mofore.types import Batch


def resume_from(run_dir: Path, manifest: Manifest) -> Checkpoint | None:
    """The checkpoint to go on from, those after it that are damaged named and set aside. UserError where it is of
    another manifest.
    """
    newest, faults = find_checkpoint(run_dir)
    if newest and newest.meta["manifest_digest"] != manifest.digest:
        raise UserError(
            f"{newest.folder} was trained on another manifest (digest {newest.meta['manifest_digest'][:12]}, "
            f"now {manifest.digest[:12]}): give data.manifest of that run, or another run_dir."
        )
    if newest and faults and rank() == 0:
        set_aside(run_dir, newest.step)
        for fault in faults:
            print(
                f"mofore: {fault} Set aside; going on from step {newest.step}.", file=sys.stderr, flush=True
            )
    return newest


def check_room(config: PretrainConfig, engine: Engine) -> None:
    """UserError, on every rank, where the disk has no room for the run's checkpoints."""
    fault = None
    if rank() == 0:
        try:
            check_space(Path(config.run_dir), config.checkpoint, state_shapes(engine))
        except UserError as full:
            fault = str(full)
    fault = from_rank_0(fault)
    if fault:
        raise UserError(fault)


def rank_batches(config: PretrainConfig, videos: int, start: int) -> RankBatches:
    """Which samples this rank takes from step `start` on. UserError where the batch does not divide or is too large."""
    micro_batch, _ = config.cut_batch(world())
    return RankBatches(
        videos, config.global_batch, micro_batch, config.seed, start, config.steps, rank(), world()
    )


def load_batches(
    config: PretrainConfig, manifest: Manifest, rows: np.ndarray, start: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches from step `start` on; its workers begin when the first is asked for."""
    keys = rank_batches(config, len(rows), start)
    clips = PretrainClips(manifest, config.data, rows, config.seed, config.tokens)
    return batches_of(build_loader(clips, keys, config.workers, pin_memory=device.type == "cuda"))


def build(config: PretrainConfig, newest: Checkpoint | None, device: torch.device) -> Engine:
    """The engine in the state of the checkpoint, or with fresh weights."""
    micro_batch, accumulation = config.cut_batch(world())
    model = build_pretraining(config.model(), config.seed)
    optimizer = build_optimizer(parameter_groups(model, config.optimizer.weight_decay), config.optimizer)
    engine = build_engine(model, optimizer, config.engine, micro_batch, accumulation, config.optimizer.clip)
    if newest:
        newest.check_fits(state_shapes(engine))
    make_moments(engine, empty_batch(config, micro_batch, device))
    if newest:
        load_state(engine, newest)
    return engine


def empty_batch(config: PretrainConfig, videos: int, device: torch.device) -> Batch:
    """Black clips of the run's shapes, for the empty update of a resume."""
    data = config.data
    clip = (3, data.frames, data.size, data.size)
    return Batch(
        torch.zeros(videos, *clip, dtype=torch.uint8, device=device),
        torch.zeros(videos, data.targets, *clip, dtype=torch.uint8, device=device),
        torch.zeros(videos, data.targets, device=device),
        torch.zeros(videos, dtype=torch.int64, device=device),
        torch.zeros(videos, 0, dtype=torch.int64, device=device),
    )


def load_state(engine: Engine, checkpoint: Checkpoint) -> None:
    updates = checkpoint.step - checkpoint.meta["guard"]["skipped"]
    fill_state(engine, checkpoint.read, updates)


def go_back(
    config: PretrainConfig, engine: Engine, saver: Saver, guard: Guard, bad_steps: BadSteps, step: int,
    manifest: Manifest, rows: np.ndarray,
) -> int:  # fmt: skip
    """Back to the last checkpoint after too many skipped updates; returns its step. The samples are recorded.

    Raises UserError where there is none, or the same steps failed before.
    """
    saver.wait()
    first, recurs = step - guard.streak + 1, bad_steps.recurs(step - guard.streak + 1)

    def samples(number: int) -> list[str]:
        keys = global_batch_keys(number - 1, len(rows), config.global_batch, config.seed)
        return [manifest[int(rows[position])].uri for _, position in keys]

    bad_steps.record(first, step, guard.reason, samples)
    newest, _ = find_checkpoint(Path(config.run_dir))
    said = f"steps {first} to {step}: {guard.reason}"
    if recurs or newest is None:
        why = "again, with the same samples" if recurs else "and there is no checkpoint to go back to"
        raise UserError(
            f"{said}, {why}. Their videos: {bad_steps.path}. The last checkpoint stands. Lower optimizer.lr or "
            "optimizer.clip, or look at these videos."
        )
    if rank() == 0:
        print(
            f"mofore: {said}; back to step {newest.step}. Their videos: {bad_steps.path}",
            file=sys.stderr,
            flush=True,
        )
    load_state(engine, newest)
    guard.restore(newest.meta["guard"])
    return newest.step
