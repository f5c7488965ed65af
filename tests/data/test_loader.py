"""loader: batches do not depend on workers; how many workers a rank has."""

import joblib
import numpy as np
import pytest
import torch

from mofore.data.dataset import DataConfig, PretrainClips
from mofore.data.loader import build_loader, check_workers, iterate_batches, resolve_workers
from mofore.data.manifest import read_manifest
from mofore.data.order import RankSampler
from mofore.errors import UserError


@pytest.mark.slow
def test_batches_do_not_depend_on_workers(manifest):
    """The same batches in the same order from 0, 1 and 2 workers."""
    read = read_manifest(manifest)
    data = PretrainClips(read, DataConfig(str(manifest), 4, 8.0, 32), np.arange(len(read)), 0)
    seen = []
    for workers in (0, 1, 2):
        sampler = RankSampler(len(read), 8, 4, 0, 0, 3, 0, 1)
        seen.append(list(iterate_batches(build_loader(data, sampler, workers, pin_memory=False))))
    for other in seen[1:]:
        assert len(other) == 6
        for a, b in zip(seen[0], other, strict=True):
            assert type(b).__name__ == "LoadedBatch"
            pairs = zip((*a.batch, *a.jitter), (*b.batch, *b.jitter), strict=True)
            assert all(torch.equal(x, y) for x, y in pairs)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "on_gpu", "on_cpu"),
    [
        ({}, 63, 2),
        ({"LOCAL_WORLD_SIZE": "1"}, 63, 2),
        (TORCHRUN, 7, 2),
        (TORCHRUN | {"SLURM_CPUS_PER_TASK": "32"}, 3, 2),  # torchrun within one SLURM task
        ({"SLURM_CPUS_PER_TASK": "16", "LOCAL_WORLD_SIZE": "4"}, 15, 2),  # a SLURM task per rank
        ({"SLURM_CPUS_PER_TASK": "1", "LOCAL_WORLD_SIZE": "4"}, 1, 1),
        ({"SLURM_CPUS_PER_TASK": "128"}, 63, 2),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "100"}, 1, 1),
    ],
)
def test_automatic_workers_are_the_cpus_of_a_rank(environment, on_gpu, on_cpu, monkeypatch):
    """On a machine of 64 CPUs. A number stays what it is."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    for name in (*TORCHRUN, "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_workers("auto", "cuda") == on_gpu
    assert resolve_workers("auto", "cpu") == on_cpu
    assert [resolve_workers(number, "cuda") for number in (0, 5)] == [0, 5]


@pytest.mark.parametrize("workers", [-1, "many", "3", ""])
def test_other_workers_raise(workers):
    with pytest.raises(UserError, match=f"workers={workers} must be at least 0, or auto"):
        check_workers(workers)
