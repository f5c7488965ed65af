"""Confidence intervals (95%), resampled by source group.

Clips of one source are similar, so source groups are the independent units: whole groups are drawn
with replacement, never single videos (Efron and Tibshirani, "An Introduction to the Bootstrap",
1993, chapters 8 and 13). A `Bootstrap` holds the draws. Every statistic is computed for the sample
itself (row 0) and for all its resamples (rows 1..R) at once, so differences and ratios of
statistics are plain arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

# More groups than this are merged into this many fixed units: the tables of pairs stay small and
# the intervals hardly change.
MAX_UNITS = 1000
LEVEL = 0.95
ONE_GROUP = "no interval: only one source group"


@dataclass(frozen=True, slots=True)
class Result:
    """One number and how it was measured.

    low, high: bounds of the 95% interval, None without an interval (`note` says why).
    n: videos or pairs of videos that were measured.
    std: standard deviation over these videos or pairs, where it is informative.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    protocol: str
    note: str | None = None
    std: float | None = None


def missing(metric: str, protocol: str, note: str) -> Result:
    """A metric without a value; the note says why."""
    return Result(metric, None, None, None, 0, protocol, note)


class Bootstrap:
    """The draws of a bootstrap over source groups.

    units: i64 [n], the resampling unit (0..G-1) of each video. draws: f64 [R + 1, G], how often
    each unit was drawn; row 0 is all ones.
    """

    def __init__(self, groups: np.ndarray, resamples: int, seed: int) -> None:
        """groups: str [n], the source group of each video."""
        self.units = np.unique(groups, return_inverse=True)[1] % MAX_UNITS
        self.num_units = int(self.units.max()) + 1 if len(groups) else 0
        drawn: np.ndarray = np.zeros((0, self.num_units))
        if self.num_units:
            rng = np.random.default_rng(seed)
            uniform = np.full(self.num_units, 1 / self.num_units)
            drawn = rng.multinomial(self.num_units, uniform, size=resamples) * 1.0
        self.draws = np.concatenate([np.ones((1, self.num_units)), drawn])

    def mean(self, scores: np.ndarray) -> np.ndarray:
        """Mean over videos. scores: float [n], nan for videos to leave out. Returns f64 [R + 1]."""
        known = np.isfinite(scores)
        sums = np.bincount(self.units, np.where(known, scores, 0.0), self.num_units)
        counts = np.bincount(self.units, known, self.num_units)
        return ratio(self.draws @ sums, self.draws @ counts)

    def pair_mean(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Mean over pairs of videos. Returns f64 [R + 1].

        Both videos of a pair are resampled; resampling only one would halve the interval's width.
        sums, counts: f64 [G, G], totals over the pairs between two units.
        """
        return ratio(self._pair_totals(sums), self._pair_totals(counts))

    def _pair_totals(self, table: np.ndarray) -> np.ndarray:
        return ((self.draws @ table) * self.draws).sum(axis=1)

    def result(
        self,
        metric: str,
        samples: np.ndarray,
        n: int,
        protocol: str,
        note: str | None = None,
        std: float | None = None,
    ) -> Result:
        """The statistic with its percentile interval. samples: f64 [R + 1]; n: videos or pairs."""
        if n == 0 or not np.isfinite(samples[0]):
            return missing(metric, protocol, note or "no video to measure it on")
        value = float(samples[0])
        if self.num_units < 2:
            return Result(metric, value, None, None, n, protocol, _join(note, ONE_GROUP), std)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.nanpercentile(samples[1:], [tail, 100 - tail])
        return Result(metric, value, float(low), float(high), n, protocol, note, std)


def jackknife(
    metric: str,
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    protocol: str,
    note: str | None = None,
    blocks: int = 20,
) -> Result:
    """95% interval of a statistic that repeated rows would bias, such as a rank.

    A bootstrap sample has about 63% of the distinct videos, and a rank decreases with their number,
    so its percentile interval can miss the value itself. Delete-a-group jackknife: Efron and
    Tibshirani, chapter 11. statistic: takes a bool mask [n] of the videos to use. groups: str [n].
    blocks: maximum number of blocks of groups, each left out once.
    """
    n = len(groups)
    value = float(statistic(np.ones(n, dtype=bool)))
    if not np.isfinite(value):
        return missing(metric, protocol, "not finite")
    units = np.unique(groups, return_inverse=True)[1] % blocks
    count = int(units.max()) + 1
    protocol = f"{protocol}, interval by jackknife over source groups"
    if count < 2:
        return Result(metric, value, None, None, n, protocol, _join(note, ONE_GROUP))
    without = np.array([statistic(units != unit) for unit in range(count)])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    margin = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Result(metric, value, value - margin, value + margin, n, protocol, note)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator; nan if the denominator is 0: a resample without such videos."""
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0
    )


def _join(first: str | None, second: str) -> str:
    return f"{first}; {second}" if first else second
