"""95% intervals of means over seeds, and of differences between recipes.

The interval of a mean over seeds combines the error over groups, which all seeds share, and the
error over seeds, as the root of the sum of their squares. Few seeds estimate their own variance
badly, so it is pooled over the trained recipes of a table as a share of p (1 - p), because a recipe
whose mean p is near 0 or 1 cannot vary by much (the dispersion of a quasi-binomial model, McCullagh
and Nelder, "Generalized Linear Models", 1989, section 4.5). The interval of a single seed covers
the error over groups and the pooled error over seeds, if other recipes have several.

If every seed is a fold with separate groups, the error over groups is smaller for the mean, and
the variance over seeds is what exceeds it.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

from mofore.evaluation.intervals import Bootstrap

UPPER_QUANTILE = 0.975  # of a normal or t distribution; both tails leave 95%

# Half-widths of the intervals over groups and values of n runs, f64 [n] each.
Sample = tuple[np.ndarray, np.ndarray]


class SeedVariance(NamedTuple):
    """Variance over seeds, and the degrees of freedom of its estimate."""

    variance: float
    freedom: float

    def plus(self, other: "SeedVariance") -> "SeedVariance":
        """The variance of a difference of two recipes, with the degrees of freedom of Welch and
        Satterthwaite, but no more than those of the better estimate: both may come from one pool.
        """
        known = [each for each in (self, other) if each.variance]
        total = sum(each.variance for each in known)
        if not total:
            return SeedVariance(0.0, min(self.freedom, other.freedom))
        freedom = total**2 / sum(each.variance**2 / each.freedom for each in known)
        return SeedVariance(total, min(freedom, max(each.freedom for each in known)))


def half_width_over_groups(correct: np.ndarray, videos: np.ndarray) -> float:
    """Half-width of the interval of sum(correct) / sum(videos), f64 [G] each, over groups."""
    draws = Bootstrap(np.arange(len(videos)), 1000, 0).draws
    tails = [100 * (1 - UPPER_QUANTILE), 100 * UPPER_QUANTILE]
    low, high = np.percentile((draws @ correct) / (draws @ videos), tails)
    return (high - low) / 2


def half_width(sample: Sample, variance: SeedVariance, folds: bool) -> float:
    """Half-width of the interval of the mean over runs."""
    half_widths, values = sample
    of_folds = math.hypot(*half_widths) / len(values)
    over_groups = of_folds if folds else float(half_widths.mean())
    if not variance.freedom:
        return over_groups
    quantile = stats.t.ppf(UPPER_QUANTILE, variance.freedom)
    return math.hypot(over_groups, quantile * math.sqrt(variance.variance / len(values)))


def seed_variances(
    samples: dict[str, Sample], trained: set[str], folds: bool
) -> dict[str, SeedVariance]:
    """By recipe. Trained recipes share one dispersion; each of the others has its own."""
    pools = [trained & samples.keys(), *({name} for name in samples if name not in trained)]
    return {
        name: variance
        for pool in pools
        for name, variance in _pooled({name: samples[name] for name in pool}, folds).items()
    }


def _pooled(samples: dict[str, Sample], folds: bool) -> dict[str, SeedVariance]:
    """By recipe, from one dispersion. Recipes with all runs at 0 or at 1 do not contribute."""
    scales = {name: values.mean() * (1 - values.mean()) for name, (_, values) in samples.items()}
    freedom, total = 0, 0.0
    for name, (half_widths, values) in samples.items():
        if len(values) > 1 and scales[name] > 0:
            normal = stats.norm.ppf(UPPER_QUANTILE)
            of_groups = np.mean((half_widths / normal) ** 2) if folds else 0.0
            freedom += len(values) - 1
            total += (len(values) - 1) * (np.var(values, ddof=1) - of_groups) / scales[name]
    dispersion = max(0.0, total / freedom) if freedom else 0.0
    return {
        name: SeedVariance(float(dispersion * scale), freedom) for name, scale in scales.items()
    }
