"""Scores of videos in, a number with its 95% interval out, resampled by source group.

Clips cut from one source resemble one another, so the independent unit is the source group: whole groups are
drawn with replacement, never single videos (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapters 8 and 13). One `Bootstrap` holds the draws; every statistic is computed for the sample itself (row 0)
and for all its resamples (rows 1..R) at once, so differences and ratios of statistics are plain arithmetic.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Beyond this many, groups are drawn in fixed bundles: tables of pairs stay small, the intervals hardly change.
MAX_UNITS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Result:
    """One number with its protocol. low, high: 95% interval, None where there is none (the note says why).

    spread: standard deviation over what the number is a mean of (videos or pairs of videos), where asked for.
    """

    metric: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    protocol: str
    note: str | None = None
    spread: float | None = None


def missing(metric: str, protocol: str, note: str) -> Result:
    """A metric that cannot be had here, and why."""
    return Result(metric, None, None, None, 0, protocol, note)


class Bootstrap:
    """The draws of one resampling of source groups.

    units: i64 [n] the unit of each video (0..G-1); draws: f64 [R + 1, G] how often each unit was drawn,
    row 0 all ones.
    """

    def __init__(self, groups: np.ndarray, resamples: int, seed: int) -> None:
        """groups: str [n], the source group of each video."""
        self.units = np.unique(groups, return_inverse=True)[1] % MAX_UNITS
        self.count = int(self.units.max()) + 1 if len(groups) else 0
        drawn: np.ndarray = np.zeros((0, self.count))
        if self.count:
            rng = np.random.default_rng(seed)
            drawn = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=resamples) * 1.0
        self.draws = np.concatenate([np.ones((1, self.count)), drawn])

    def mean(self, scores: np.ndarray) -> np.ndarray:
        """Mean over videos. scores: float [n], nan where a video has none. Returns f64 [R + 1]."""
        known = np.isfinite(scores)
        sums = np.bincount(self.units, np.where(known, scores, 0.0), self.count)
        counts = np.bincount(self.units, known, self.count)
        return ratio(self.draws @ sums, self.draws @ counts)

    def pair_mean(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Mean over pairs of videos, both ends resampled together. Returns f64 [R + 1].

        Resampling one end only would make the interval of such a mean half as wide as it is.
        sums, counts: f64 [G, G] over the pairs between two units.
        """
        return ratio(self._pairs(sums), self._pairs(counts))

    def _pairs(self, table: np.ndarray) -> np.ndarray:
        return ((self.draws @ table) * self.draws).sum(axis=1)

    def result(
        self,
        metric: str,
        samples: np.ndarray,
        n: int,
        protocol: str,
        note: str | None = None,
        spread: float | None = None,
    ) -> Result:
        """Percentile interval of a statistic. samples: f64 [R + 1]; n: how many videos or pairs it is of."""
        if n == 0 or not np.isfinite(samples[0]):
            return missing(metric, protocol, note or "nothing to measure it on")
        if self.count < 2:
            return Result(metric, float(samples[0]), None, None, n, protocol, _join(note, ONE_GROUP), spread)
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.nanpercentile(samples[1:], [tail, 100 - tail])
        return Result(metric, float(samples[0]), float(low), float(high), n, protocol, note, spread)


ONE_GROUP = "no interval: one source group only"


def jackknife(
    metric: str,
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    protocol: str,
    note: str | None = None,
    blocks: int = 20,
) -> Result:
    """95% interval of a statistic that repeated rows would bias, such as a rank: blocks of groups left out in turn.

    A bootstrap sample holds about 63% of the distinct videos, and a rank falls with their number, so its
    percentile interval can miss the value itself. Delete-a-group jackknife: Efron and Tibshirani, chapter 11.
    statistic: takes a bool mask [n] of the videos to use. groups: str [n].
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
    reach = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * error)
    return Result(metric, value, value - reach, value + reach, n, protocol, note)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, nan where the latter is not above 0: a resample may lack what is asked for."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _join(first: str | None, second: str) -> str:
    return f"{first}; {second}" if first else second
