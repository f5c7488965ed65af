"""The worker processes that load samples, and the copy of their batches to the device.

RankSampler -> workers: PretrainClips, collate -> pinned memory -> DeviceCopy
"""

import functools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from multiprocessing import forkserver

import joblib
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mofore.data.dataset import PretrainClips, collate
from mofore.data.order import RankSampler
from mofore.errors import UserError
from mofore.parallel.signals import children_ignore_stop_signals, init_worker_signals
from mofore.types import Batch, ColourJitter, LoadedBatch

AUTO = "auto"  # of the key `workers`
MAX_CPU_WORKERS = 2  # of workers=auto where the rank computes on CPU cores too


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


def prefetch_factor(workers: int) -> int:
    """Batches that each worker prepares ahead."""
    return 4 if workers <= 2 else 2  # whole batches wait in memory: many workers need fewer each


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
        prefetch_factor=prefetch_factor(workers) if workers else None,
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
