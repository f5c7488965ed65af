"""loader: the global batch of a step does not depend on ranks, micro-batches or workers."""

import joblib
import numpy as np
import pytest
import torch

from mofore.data.dataset import DataConfig, PretrainClips
from mofore.data.loader import (
    RankSampler,
    build_loader,
    check_workers,
    global_batch_indices,
    iterate_batches,
    resolve_workers,
)
from mofore.data.manifest import read_manifest
from mofore.errors import UserError

VIDEOS, GLOBAL, STEPS = 30, 8, 12


def batches_of_rank(
    rank: int = 0, world: int = 1, micro: int = 8, start: int = 0, seed: int = 0
) -> list[list]:
    return list(RankSampler(VIDEOS, GLOBAL, micro, seed, start, STEPS, rank, world))


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1)])
def test_ranks_together_see_the_same_global_batches(world, micro):
    ranks = [batches_of_rank(rank, world, micro) for rank in range(world)]
    accumulation = GLOBAL // world // micro
    for step in range(STEPS):
        together = []
        for batches in ranks:
            for batch in batches[step * accumulation : (step + 1) * accumulation]:
                assert len(batch) == micro
                together += batch
        assert together == global_batch_indices(step, VIDEOS, GLOBAL, 0)


def test_an_epoch_is_a_permutation_without_the_remainder():
    """30 videos, batches of 8: three per epoch; no video twice in a batch or in an epoch."""
    epochs = {}
    for step in range(STEPS):
        indices = global_batch_indices(step, VIDEOS, GLOBAL, 0)
        assert {epoch for epoch, _ in indices} == {step // 3}
        assert len({position for _, position in indices}) == GLOBAL
        epochs.setdefault(step // 3, []).extend(position for _, position in indices)
    assert all(len(set(seen)) == 24 for seen in epochs.values())
    assert set().union(*epochs.values()) == set(range(VIDEOS))  # each epoch drops other videos
    assert epochs[0] != epochs[1]
    assert global_batch_indices(0, VIDEOS, GLOBAL, 1) != global_batch_indices(0, VIDEOS, GLOBAL, 0)
    single = [position for _, position in global_batch_indices(5, 8, 8, 0)]
    assert sorted(single) == list(range(8))
    drawn = np.random.default_rng((3, 2)).permutation(VIDEOS)[GLOBAL : 2 * GLOBAL]
    assert global_batch_indices(7, VIDEOS, GLOBAL, 3) == [(2, position) for position in drawn]


@pytest.mark.parametrize("start", [1, 3, 7, 12])
def test_a_resumed_sampler_continues_where_it_stopped(start):
    assert batches_of_rank(start=start, micro=4) == batches_of_rank(micro=4)[2 * start :]
    assert len(RankSampler(VIDEOS, GLOBAL, 4, 0, start, STEPS, 0, 1)) == 2 * (STEPS - start)


def test_a_global_batch_larger_than_the_dataset_raises():
    with pytest.raises(UserError, match="global_batch=31 is more than the 30 usable videos"):
        RankSampler(30, 31, 31, 0, 0, 1, 0, 1)


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
