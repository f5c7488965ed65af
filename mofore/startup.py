"""What a run starts from: its checkpoint or fresh weights, and its batches from any step on."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint, rename_damaged
from mofore.compilation import compile_blocks, should_compile
from mofore.config import PretrainConfig
from mofore.data.dataset import PretrainClips, kept_tokens
from mofore.data.loader import (
    DeviceCopy,
    build_loader,
    iterate_batches,
    prefetch_factor,
    resolve_workers,
)
from mofore.data.manifest import Manifest
from mofore.data.order import RankSampler
from mofore.data.shared_memory import batches_in_flight, check_shared_memory
from mofore.data.views import apply_jitter
from mofore.errors import UserError
from mofore.models.objective import build_pretraining
from mofore.open_files import check_open_files
from mofore.optim import build_optimizer, parameter_groups
from mofore.parallel.collectives import get_rank, get_world_size
from mofore.parallel.engine import Engine, build_engine
from mofore.parallel.state import init_optimizer_state, load_state, state_shapes
from mofore.precision import resolve_precision
from mofore.types import Batch, ColourJitter

# Open files of a rank: its own and the pipes of a decoding process, as counted on CPUs.
FILES_OF_A_RANK, FILES_PER_WORKER = 24, 8

logger = logging.getLogger(__name__)


def find_resume_checkpoint(run_dir: Path, manifest: Manifest) -> Checkpoint | None:
    """The checkpoint to resume from; newer ones that are damaged are reported and renamed.

    Raises UserError if it was trained on another manifest.
    """
    checkpoint, faults = find_latest_checkpoint(run_dir)
    if checkpoint and checkpoint.meta["manifest_digest"] != manifest.digest:
        raise UserError(
            f"{checkpoint.folder} was trained on another manifest (digest "
            f"{checkpoint.meta['manifest_digest'][:12]}, now {manifest.digest[:12]}): give that "
            "run's data.manifest, or another run_dir."
        )
    if checkpoint and faults and get_rank() == 0:
        rename_damaged(run_dir, checkpoint.step)
        for fault in faults:
            logger.warning("%s It was renamed; resuming from step %d.", fault, checkpoint.step)
    return checkpoint


def build_training_engine(
    config: PretrainConfig, checkpoint: Checkpoint | None, device: torch.device
) -> Engine:
    """The engine in the state of the checkpoint, or with fresh weights, and compiled blocks."""
    micro_batch, accumulation = config.split_batch(get_world_size())
    model = build_pretraining(config.model(), config.seed)
    batch = empty_batch(config, micro_batch, device)
    if should_compile(config.engine, device):
        precision = resolve_precision(config.engine.precision, device)
        compile_blocks(model.to(device), batch, precision)
    groups = parameter_groups(model, config.optimizer.weight_decay)
    optimizer = build_optimizer(groups, config.optimizer)
    clip_grad = config.optimizer.clip_grad
    engine = build_engine(model, optimizer, config.engine, micro_batch, accumulation, clip_grad)
    init_optimizer_state(engine, batch)
    if checkpoint:
        load_checkpoint(engine, checkpoint)
    return engine


def load_checkpoint(engine: Engine, checkpoint: Checkpoint) -> None:
    """Load weights, moments and the count of applied updates into the engine.

    Raises UserError if the checkpoint belongs to a model with other shapes.
    """
    checkpoint.check_shapes(state_shapes(engine))
    updates = checkpoint.step - checkpoint.meta["bad_updates"]["skipped"]
    load_state(engine, checkpoint.load, updates)


def empty_batch(config: PretrainConfig, videos: int, device: torch.device) -> Batch:
    """Black clips in the run's shapes, to compile with and to create optimizer state."""
    data = config.data
    clip = (3, data.frames, data.size, data.size)
    ratios = (data.token_keep_ratio, config.teacher.token_keep_ratio)
    counts = (kept_tokens(ratio, config.tokens) for ratio in ratios)
    visible, teacher_visible = (
        torch.arange(count, device=device).repeat(videos, 1) for count in counts
    )
    return Batch(
        context=torch.zeros(videos, *clip, dtype=torch.uint8, device=device),
        targets=torch.zeros(videos, data.targets, *clip, dtype=torch.uint8, device=device),
        gaps=torch.zeros(videos, data.targets, device=device),
        rows=torch.zeros(videos, dtype=torch.int64, device=device),
        visible=visible,
        teacher_visible=teacher_visible,
    )


def rank_sampler(config: PretrainConfig, videos: int, start: int) -> RankSampler:
    """This rank's samples from step `start` on.

    UserError if the batch does not divide or is too large.
    """
    micro_batch, _ = config.split_batch(get_world_size())
    return RankSampler(
        videos,
        config.global_batch,
        micro_batch,
        config.seed,
        start,
        config.steps,
        get_rank(),
        get_world_size(),
    )


def check_decoding_processes(config: PretrainConfig, device: torch.device) -> None:
    """Raise UserError if this machine has too little shared memory or too few open files for them.

    Called by every rank before any of them starts its decoding processes.
    """
    workers = resolve_workers(config.workers, device.type)
    if not workers:
        return
    micro_batch, _ = config.split_batch(get_world_size())
    batch = empty_batch(config, micro_batch, torch.device("meta"))
    batches = batches_in_flight(workers, prefetch_factor(workers))
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    check_shared_memory(sum(each.nbytes for each in batch), batches, ranks, "micro_batch")
    tensors = len(Batch._fields) + len(ColourJitter._fields)
    more = FILES_OF_A_RANK + FILES_PER_WORKER * workers + tensors * batches
    check_open_files(more, f"a rank with workers={workers}")


def load_batches(
    config: PretrainConfig, manifest: Manifest, rows: np.ndarray, start: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches from step `start` on, on the device, with colour jitter.

    Workers start when the first is asked for.
    """
    sampler = rank_sampler(config, len(rows), start)
    clips = PretrainClips(
        manifest, config.data, rows, config.seed, config.tokens, config.teacher.token_keep_ratio
    )
    workers = resolve_workers(config.workers, device.type)
    batches = iterate_batches(build_loader(clips, sampler, workers, device.type == "cuda"))
    # map keeps no batch: its memory is free as soon as the step has used it.
    return map(apply_jitter, map(DeviceCopy(device), batches))
