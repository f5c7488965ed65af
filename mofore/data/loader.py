"""The order of samples, a function of the step alone, and the worker processes that load them.

Epoch e is a permutation drawn from (seed, e), divided into whole global batches. The remainder is
dropped, so that no video occurs twice in a global batch and becomes its own negative. Rank r of W
takes the r-th of W equal slices of a global batch and divides it into micro-batches. A global batch
is therefore the same for any number of ranks.

    RankSampler -> workers: PretrainClips, collate -> pinned memory -> DeviceCopy
"""

import functools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver

import joblib
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mofore.data.dataset import PretrainClips, collate
from mofore.errors import UserError
from mofore.parallel.signals import children_ignore_stop_signals, init_worker_signals
from mofore.types import Batch, ColourJitter, LoadedBatch

SampleIndex = tuple[int, int]  # (epoch, position), an index of PretrainClips
AUTO = "auto"  # of the key `workers`
MAX_CPU_WORKERS = 2  # of workers=auto where the rank computes on CPU cores too


def global_batch_indices(step: int, videos: int, global_batch: int, seed: int) -> list[SampleIndex]:
    """The (epoch, position) indices of the global batch of a step, counted from 0."""
    per_epoch = videos // global_batch
    epoch, batch = divmod(step, per_epoch)
    order = _epoch_order(videos, seed, epoch)
    return [(epoch, int(i)) for i in order[batch * global_batch : (batch + 1) * global_batch]]


@functools.lru_cache(maxsize=2)  # the sampler may be an epoch ahead of the step that is checked
def _epoch_order(videos: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch, i64 [videos]; to be read only."""
    order = np.random.default_rng((seed, epoch)).permutation(videos)
    order.flags.writeable = False
    return order


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


def check_workers(workers: int | str) -> None:
    """Raise UserError unless `workers` is a number of processes or "auto"."""
    valid = workers >= 0 if isinstance(workers, int) else workers == AUTO
    if not valid:
        raise UserError(f"workers={workers} must be at least 0, or {AUTO}.")


def resolve_workers(workers: int | str, device_type: str) -> int:
    """The decoding processes of this rank: `workers`, or a number of this rank's CPUs.

    workers=auto leaves one CPU to the rank itself if it computes on a GPU. On CPUs the model needs
    the cores.
    """
    if isinstance(workers, int):
        return workers
    cpus = available_cpus()
    return min(MAX_CPU_WORKERS, cpus) if device_type == "cpu" else max(1, cpus - 1)


def available_cpus() -> int:
    """CPUs that this rank may use, at least 1. A container's CPU quota counts.

    The ranks that torchrun starts on a machine share its CPUs. A SLURM task has its own, but may
    see those of the whole machine.
    """
    cpus = joblib.cpu_count()
    of_task = os.environ.get("SLURM_CPUS_PER_TASK")
    if of_task:
        cpus = min(cpus, int(of_task))
    if not of_task or "TORCHELASTIC_RUN_ID" in os.environ:  # which torchrun sets
        cpus //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, cpus)


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
    """A DataLoader of LoadedBatches; with `workers` = 0 it decodes in this process.

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
        # Whole batches wait in memory: many workers need fewer each.
        prefetch_factor=(4 if workers <= 2 else 2) if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(init_worker_signals, os.getpid()),
    )


class DeviceCopy:
    """Copies batches to a device. A GPU copies from pinned memory, on a CUDA stream of its own.

    So the copy runs beside what the GPU computes, and the host waits for neither.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, loaded: LoadedBatch) -> LoadedBatch:
        if self.stream is None:
            return loaded
        with torch.cuda.stream(self.stream):
            batch, jitter = (map(self._copy, part) for part in loaded)
            copied = LoadedBatch(Batch(*batch), ColourJitter(*jitter))
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in (*copied.batch, *copied.jitter):
            tensor.record_stream(current)  # keeps its memory until `current` has used it
        return copied

    def _copy(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)
