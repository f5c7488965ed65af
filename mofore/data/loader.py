"""The order of samples, as a function of the step, and the workers that prepare them.

Epoch e is a permutation drawn from (seed, e), cut into whole global batches (the rest is left for another
epoch, so that no video meets itself among its negatives). Rank r of W takes the r-th of W equal runs of a
global batch and cuts it into micro-batches. So a global batch is the same whatever the number of ranks.
"""

import functools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver

import numpy as np
from torch.utils.data import DataLoader, Sampler

from mofore.data.dataset import PretrainClips, collate
from mofore.errors import UserError
from mofore.preemption import deaf_children, live_and_die_with

Key = tuple[int, int]


def global_batch_keys(step: int, videos: int, global_batch: int, seed: int) -> list[Key]:
    """The (epoch, position) pairs of the global batch of a step."""
    per_epoch = videos // global_batch
    epoch, batch = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(videos)
    return [(epoch, int(i)) for i in order[batch * global_batch : (batch + 1) * global_batch]]


class RankBatches(Sampler[list[Key]]):
    """The micro-batches of one rank, from step `start` to `steps`, in order."""

    def __init__(
        self, videos: int, global_batch: int, micro_batch: int, seed: int, start: int, steps: int,
        rank: int, world: int,
    ) -> None:  # fmt: skip
        if videos < global_batch:
            raise UserError(
                f"global_batch={global_batch} is more than the {videos} usable videos of the manifest: "
                f"a video must not be its own negative. Give global_batch={videos} or less."
            )
        self.videos, self.global_batch, self.micro_batch = videos, global_batch, micro_batch
        self.seed, self.start, self.steps, self.rank = seed, start, steps, rank
        self.share = global_batch // world

    def __len__(self) -> int:
        return (self.steps - self.start) * (self.share // self.micro_batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.start, self.steps):
            keys = global_batch_keys(step, self.videos, self.global_batch, self.seed)
            mine = keys[self.rank * self.share : (self.rank + 1) * self.share]
            for first in range(0, self.share, self.micro_batch):
                yield mine[first : first + self.micro_batch]


def batches_of(loader: Iterable) -> Iterator:
    """What the loader gives; a UserError of a worker arrives as its own sentence, without the worker's traceback."""
    said = None
    try:
        yield from loader
    except UserError as mistake:
        said = str(mistake).rsplit("UserError: ")[-1].strip()
        # torch's re-raise makes a cycle of the error and its frames; it would keep the loader, and so its workers,
        # beyond the point where they can still be told to end
        mistake.__traceback__ = None
    if said:
        raise UserError(said)


def build_loader(dataset: PretrainClips, batches: RankBatches, workers: int, pin_memory: bool) -> DataLoader:
    """Workers are forked from a clean server, never from this process: it has threads and open connections."""
    # The server imports what workers need once, not every worker.
    multiprocessing.set_forkserver_preload(["mofore.data.dataset"])
    if workers:
        with deaf_children():
            forkserver.ensure_running()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(live_and_die_with, os.getpid()),
    )
