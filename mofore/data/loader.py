"""The order of samples, a function of the step alone, and the worker processes that load them.

Epoch e is a permutation drawn from (seed, e), divided into whole global batches. The remainder is
dropped, so that no video occurs twice in a global batch and becomes its own negative. Rank r of W
takes the r-th of W equal slices of a global batch and divides it into micro-batches. A global batch
is therefore the same for any number of ranks.
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
from mofore.parallel.signals import children_ignore_stop_signals, init_worker_signals

SampleIndex = tuple[int, int]  # (epoch, position), an index of PretrainClips


def global_batch_indices(step: int, videos: int, global_batch: int, seed: int) -> list[SampleIndex]:
    """The (epoch, position) indices of the global batch of a step, counted from 0."""
    per_epoch = videos // global_batch
    epoch, batch = divmod(step, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(videos)
    return [(epoch, int(i)) for i in order[batch * global_batch : (batch + 1) * global_batch]]


class RankSampler(Sampler[list[SampleIndex]]):
    """Micro-batches of one rank, for steps `start` to `steps` (exclusive), in order.

    Raises UserError if a global batch needs more videos than there are.
    """

    def __init__(
        self,
        videos: int,
        global_batch: int,
        micro_batch: int,
        seed: int,
        start: int,
        steps: int,
        rank: int,
        world_size: int,
    ) -> None:
        if videos < global_batch:
            raise UserError(
                f"global_batch={global_batch} is more than the {videos} usable videos of the "
                f"manifest: a video must not be its own negative. Set global_batch={videos} or "
                "less."
            )
        self.videos, self.global_batch, self.micro_batch = videos, global_batch, micro_batch
        self.seed, self.start, self.steps, self.rank = seed, start, steps, rank
        self.per_rank = global_batch // world_size

    def __len__(self) -> int:
        return (self.steps - self.start) * (self.per_rank // self.micro_batch)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for step in range(self.start, self.steps):
            indices = global_batch_indices(step, self.videos, self.global_batch, self.seed)
            local = indices[self.rank * self.per_rank : (self.rank + 1) * self.per_rank]
            for first in range(0, self.per_rank, self.micro_batch):
                yield local[first : first + self.micro_batch]


def iterate_batches(loader: Iterable) -> Iterator:
    """The batches of a loader. Raises a worker's UserError without the worker's traceback."""
    message = None
    try:
        yield from loader
    except UserError as error:
        message = str(error).rsplit("UserError: ")[-1].strip()
        # torch re-raises with a reference cycle of the error and its frames. It would keep the
        # loader alive, and so its workers, too long for a clean shutdown.
        error.__traceback__ = None
    if message:
        raise UserError(message)


def build_loader(
    dataset: PretrainClips, sampler: RankSampler, workers: int, pin_memory: bool
) -> DataLoader:
    """A DataLoader of Batches; with `workers` = 0 it decodes in this process.

    Workers are forked from a fork server, not from this process: it has threads and open
    connections.
    """
    # The fork server imports the dataset once, instead of every worker.
    multiprocessing.set_forkserver_preload(["mofore.data.dataset"])
    if workers:
        with children_ignore_stop_signals():
            forkserver.ensure_running()
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(init_worker_signals, os.getpid()),
    )
