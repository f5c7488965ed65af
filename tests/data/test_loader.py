"""loader: the global batch of a step is the same on any number of ranks, in any micro-batches, in any worker."""

import numpy as np
import pytest
import torch

from mofore.data.dataset import DataConfig, PretrainClips
from mofore.data.loader import RankSampler, build_loader, global_batch_indices, iterate_batches
from mofore.data.manifest import read_manifest
from mofore.errors import UserError

VIDEOS, GLOBAL, STEPS = 30, 8, 12


def keys_of(
    rank: int = 0, world: int = 1, micro: int = 8, start: int = 0, seed: int = 0
) -> list[list]:
    return list(RankSampler(VIDEOS, GLOBAL, micro, seed, start, STEPS, rank, world))


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1)])
def test_ranks_together_see_the_same_global_batches(world, micro):
    ranks = [keys_of(rank, world, micro) for rank in range(world)]
    accumulation = GLOBAL // world // micro
    for step in range(STEPS):
        together = []
        for mine in ranks:
            for batch in mine[step * accumulation : (step + 1) * accumulation]:
                assert len(batch) == micro
                together += batch
        assert together == global_batch_indices(step, VIDEOS, GLOBAL, 0)


def test_an_epoch_is_a_permutation_without_its_rest():
    """30 videos, batches of 8: three a epoch, no video twice among its own negatives or in its epoch."""
    epochs = {}
    for step in range(STEPS):
        keys = global_batch_indices(step, VIDEOS, GLOBAL, 0)
        assert {epoch for epoch, _ in keys} == {step // 3}
        assert len({position for _, position in keys}) == GLOBAL
        epochs.setdefault(step // 3, []).extend(position for _, position in keys)
    assert all(len(set(seen)) == 24 for seen in epochs.values())
    assert set().union(*epochs.values()) == set(range(VIDEOS))  # the rest is another one each time
    assert epochs[0] != epochs[1]
    assert global_batch_indices(0, VIDEOS, GLOBAL, 1) != global_batch_indices(0, VIDEOS, GLOBAL, 0)
    whole = [position for _, position in global_batch_indices(5, 8, 8, 0)]
    assert sorted(whole) == list(range(8))


@pytest.mark.parametrize("start", [1, 3, 7, 12])
def test_a_resumed_sampler_goes_on_where_it_stopped(start):
    assert keys_of(start=start, micro=4) == keys_of(micro=4)[2 * start :]
    assert len(RankSampler(VIDEOS, GLOBAL, 4, 0, start, STEPS, 0, 1)) == 2 * (STEPS - start)


def test_more_videos_asked_than_there_are():
    with pytest.raises(UserError, match="global_batch=31 is more than the 30 usable videos"):
        RankSampler(30, 31, 31, 0, 0, 1, 0, 1)


@pytest.mark.slow
def test_workers_change_nothing(manifest):
    """The same batches in the same order from 0, 1 and 2 workers."""
    read = read_manifest(manifest)
    data = PretrainClips(read, DataConfig(str(manifest), 4, 8.0, 32), np.arange(len(read)), 0)
    seen = []
    for workers in (0, 1, 2):
        batches = RankSampler(len(read), 8, 4, 0, 0, 3, 0, 1)
        seen.append(list(iterate_batches(build_loader(data, batches, workers, pin_memory=False))))
    for other in seen[1:]:
        assert len(other) == 6
        for a, b in zip(seen[0], other, strict=True):
            assert type(b).__name__ == "Batch"
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
