from typing import Any

import numpy as np
import pytest
from scipy import stats

from mofore.evaluation.intervals import MAX_UNITS, Bootstrap, jackknife


def names(codes) -> np.ndarray:
    return np.array([f"g{code}" for code in codes])


def test_the_interval_of_a_constant_is_the_constant():
    bootstrap = Bootstrap(names(np.arange(30) % 7), 200, seed=0)
    result = bootstrap.result("m", bootstrap.mean(np.full(30, 0.25)), 30, "p")
    assert (result.value, result.low, result.high) == pytest.approx((0.25, 0.25, 0.25))


def test_groups_are_resampled_instead_of_videos():
    # 10 groups of 50 videos with equal scores: 500 videos, but only 10 independent units.
    scores = np.repeat([0.0, 1.0] * 5, 50)
    by_group = Bootstrap(names(np.repeat(np.arange(10), 50)), 2000, seed=0)
    by_video = Bootstrap(names(np.arange(500)), 2000, seed=0)
    results: list[Any] = [b.result("m", b.mean(scores), 500, "p") for b in (by_group, by_video)]
    wide, narrow = results
    assert wide.value == narrow.value == 0.5
    assert (wide.high - wide.low) > 5 * (narrow.high - narrow.low)


def test_the_interval_of_a_mean_matches_the_normal_approximation():
    scores = np.random.default_rng(1).normal(size=400)
    bootstrap = Bootstrap(names(np.arange(400)), 4000, seed=0)
    result = bootstrap.result("m", bootstrap.mean(scores), 400, "p")
    error = 1.96 * scores.std() / 20
    assert result.low == pytest.approx(scores.mean() - error, abs=0.01)
    assert result.high == pytest.approx(scores.mean() + error, abs=0.01)


def test_the_order_of_the_videos_does_not_change_the_interval():
    rng = np.random.default_rng(2)
    scores, groups = rng.normal(size=60), names(np.arange(60) // 5)
    order = rng.permutation(60)
    one, other = Bootstrap(groups, 100, 3), Bootstrap(groups[order], 100, 3)
    np.testing.assert_allclose(one.mean(scores), other.mean(scores[order]))


def test_videos_without_a_score_are_left_out():
    bootstrap = Bootstrap(names([0, 0, 1, 1]), 50, seed=0)
    assert bootstrap.mean(np.array([1.0, np.nan, 3.0, np.nan]))[0] == 2.0


def test_a_mean_over_pairs_resamples_both_ends():
    # With the pair score a_i + a_j the mean is twice the mean of a, and its interval twice as wide.
    scores = np.random.default_rng(4).normal(size=200)
    bootstrap = Bootstrap(names(np.arange(200)), 2000, seed=0)
    counts = 1.0 - np.eye(200)
    order = np.argsort(bootstrap.units)
    ordered = scores[order]
    pairs = bootstrap.pair_mean((ordered[:, None] + ordered[None]) * counts, counts)
    single = bootstrap.mean(scores)
    assert pairs[0] == pytest.approx(2 * single[0])
    assert pairs[1:].std() == pytest.approx(2 * single[1:].std(), rel=0.02)


def test_one_group_has_a_value_and_no_interval():
    bootstrap = Bootstrap(names([0, 0, 0]), 50, seed=0)
    result = bootstrap.result("m", bootstrap.mean(np.array([1.0, 2.0, 3.0])), 3, "p")
    assert result.value == 2.0
    assert result.low is result.high is None
    assert "only one source group" in (result.note or "")


def test_many_groups_are_merged_without_changing_the_value():
    scores = np.random.default_rng(5).normal(size=3 * MAX_UNITS)
    bootstrap = Bootstrap(names(np.arange(3 * MAX_UNITS)), 100, seed=0)
    samples = bootstrap.mean(scores)
    assert bootstrap.num_units == MAX_UNITS
    assert samples[0] == pytest.approx(scores.mean())
    assert samples[1:].std() == pytest.approx(scores.std() / np.sqrt(len(scores)), rel=0.3)


def test_without_videos_there_is_no_value():
    bootstrap = Bootstrap(names([]), 50, seed=0)
    result = bootstrap.result("m", bootstrap.mean(np.zeros(0)), 0, "p")
    assert result.value is None
    assert result.note


def test_the_jackknife_of_a_mean_matches_the_t_interval():
    scores = np.random.default_rng(6).normal(size=20)
    result = jackknife("m", lambda mask: scores[mask].mean(), names(np.arange(20)), "p")
    low, high = stats.t.interval(0.95, 19, scores.mean(), stats.sem(scores))
    assert (result.low, result.high) == pytest.approx((low, high))


def test_the_interval_of_a_rank_contains_the_rank():
    # Its bootstrap interval does not: a resample has 63% of the distinct rows.
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(60, 40))

    def rank(mask):
        values = np.linalg.svd(rows[mask], compute_uv=False)
        share = values / values.sum()
        return np.exp(-(share * np.log(share)).sum())

    result: Any = jackknife("rank", rank, names(np.arange(60) // 2), "p")
    assert result.low < result.value < result.high
    drawn = [rng.integers(0, 60, 60) for _ in range(100)]
    assert np.percentile([rank(rows_drawn) for rows_drawn in drawn], 97.5) < result.value
