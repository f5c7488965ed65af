"""order: each epoch is a permutation, a function of (seed, epoch); ranks share a global batch."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from mofore.data.order import (
    MAX_HELD,
    RankSampler,
    feistel_shuffled,
    global_batch_indices,
    shuffled,
)
from mofore.errors import UserError

VIDEOS, GLOBAL, STEPS = 30, 8, 12


@pytest.mark.parametrize("videos", [VIDEOS, MAX_HELD + 5])
@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1)])
def test_ranks_together_see_the_same_global_batches(world, micro, videos):
    ranks = [
        list(RankSampler(videos, GLOBAL, micro, 0, 0, STEPS, rank, world)) for rank in range(world)
    ]
    accumulation = GLOBAL // world // micro
    for step in range(STEPS):
        together = []
        for batches in ranks:
            for batch in batches[step * accumulation : (step + 1) * accumulation]:
                assert len(batch) == micro
                together += batch
        assert together == global_batch_indices(step, videos, GLOBAL, 0)


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
    resumed = RankSampler(VIDEOS, GLOBAL, 4, 0, start, STEPS, 0, 1)
    whole = RankSampler(VIDEOS, GLOBAL, 4, 0, 0, STEPS, 0, 1)
    assert list(resumed) == list(whole)[2 * start :]
    assert len(resumed) == 2 * (STEPS - start)


def test_a_global_batch_larger_than_the_dataset_raises():
    with pytest.raises(UserError, match="global_batch=31 is more than the 30 usable videos"):
        RankSampler(30, 31, 31, 0, 0, 1, 0, 1)


@pytest.mark.parametrize("videos", [*range(1, 18), 100, 1000, 1024, 1025, MAX_HELD + 1, 70_000])
def test_the_computed_permutation_has_every_video_once(videos):
    positions = np.arange(videos)
    order = feistel_shuffled(positions, videos, 5, 2)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), positions)
    some = np.random.default_rng(0).integers(0, videos, 50)  # in any order, with repeats
    assert np.array_equal(feistel_shuffled(some, videos, 5, 2), order[some])


def test_few_videos_are_permuted_by_numpy_and_many_are_computed():
    """So the samples of runs on few videos are those of earlier versions."""
    positions = np.arange(MAX_HELD)
    drawn = np.random.default_rng((3, 2)).permutation(MAX_HELD)
    assert np.array_equal(shuffled(positions, MAX_HELD, 3, 2), drawn)
    computed = feistel_shuffled(positions, MAX_HELD + 1, 3, 2)
    assert np.array_equal(shuffled(positions, MAX_HELD + 1, 3, 2), computed)


@pytest.mark.parametrize("videos", [20_000_000, 10**9, 2**40 + 1])
def test_seeds_and_epochs_have_orders_of_their_own(videos):
    """Of 100,000 positions; independent orders agree in 0.005 of them or fewer, on average."""
    positions = np.arange(100_000) + 7_000_000
    orders = [shuffled(positions, videos, *key) for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    for number, order in enumerate(orders):
        assert order.min() >= 0
        assert order.max() < videos
        assert len(np.unique(order)) == len(order)
        for other in orders[:number]:
            assert (order == other).sum() < 5


def neighbour_p_value(rounds: int, videos: int = 2**16, draws: int = 60) -> float:
    """How often do two neighbours get a distance of 1 modulo the cipher's root, against chance?

    The sum of the squared deviations of `draws` orders has a chi-square distribution.
    """
    root = int(videos**0.5)
    deviations = []
    for seed in range(draws):
        steps = np.diff(feistel_shuffled(np.arange(videos), videos, seed, 3, rounds)) % root
        expected = (videos - 1) / root
        deviations.append(((steps == 1).sum() - expected) / expected**0.5)
    return float(stats.chi2.sf(np.square(deviations).sum(), draws))


def test_neighbours_are_independent_after_six_rounds_not_four():
    assert neighbour_p_value(rounds=4) < 1e-9
    assert neighbour_p_value(rounds=6) > 1e-3
    order = shuffled(np.arange(10**6), 10**6, 0, 0)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 4e-3  # 4 standard errors


@pytest.mark.parametrize("position", [0, 1, 4095, 99_999])
def test_a_position_meets_every_video_equally_often(position):
    """Chi-square of its video over 6,400 seeds and epochs, in 64 bins."""
    where, videos = np.array([position]), 100_000
    drawn = [shuffled(where, videos, seed, epoch)[0] for seed in range(80) for epoch in range(80)]
    counts = np.histogram(drawn, 64, (0, videos))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_step_of_a_billion_videos_holds_no_permutation():
    tracemalloc.start()
    try:
        indices = global_batch_indices(200_000, 10**9, 4096, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(set(indices)) == 4096
    assert peak < 2**20
