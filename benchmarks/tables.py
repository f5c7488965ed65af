"""Lines of benchmarks/results/learning.jsonl -> a table, and a picture of quality against time.

An interval is of the mean over seeds: the error over textures, which all seeds share, and that over seeds, added in
squares. A few seeds tell little of their own spread, so what they vary by is pooled over the trained recipes of a table,
as a share of p (1 - p): a recipe of mean p near 0 or 1 can't vary by much (the dispersion of a quasi-binomial model,
McCullagh and Nelder, "Generalized Linear Models", 1989, section 4.5). One seed tells nothing of it, and the interval is
over textures alone.
Where each seed is a fold with videos of its own, `Spread` and `joined` say what differs. `behind` is the difference to
ours on the same textures, in kNN, R@1 and probe: the error over textures is that of the difference, that over seeds has
the variance of both. Where it is above zero, ours is better beyond chance. `catches up` is when ours reaches what a
recipe has at its end, on the validation part, as the curves are.
"""

import math
import statistics
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from scipy import stats

from evaluation.intervals import Bootstrap

METRICS = {
    "knn_accuracy": "kNN",
    "retrieval_r1": "R@1",
    "linear_probe_accuracy": "probe",
    "time_sense": "time sense",
}
FORECAST = {"skill": "skill by gap", "r2": "R² by gap"}
LEVEL = 0.975  # of a normal or t distribution: both tails leave 95%

# Of n runs: halves of their intervals over groups, and values, each f64 [n].
Sample = tuple[np.ndarray, np.ndarray]


class Spread(NamedTuple):
    """Over seeds: a variance, and how many degrees of freedom it was estimated with. Of folds, whose values also differ
    as their groups do, it is what exceeds that.
    """

    variance: float
    freedom: float

    def apart(self, other: "Spread") -> "Spread":
        """Of the difference of a run of each: variances add, their freedom is Welch's and Satterthwaite's. It is no more
        than the better known has, for both may come of one pool.
        """
        known = [each for each in (self, other) if each.variance]
        total = sum(each.variance for each in known)
        if not total:
            return Spread(0.0, min(self.freedom, other.freedom))
        freedom = total**2 / sum(each.variance**2 / each.freedom for each in known)
        return Spread(total, min(freedom, max(each.freedom for each in known)))


def mean(runs: list[dict], metric: str) -> float:
    return statistics.mean(run["scores"][metric][0] for run in runs)


def scored(runs: list[dict], metric: str) -> Sample:
    values, low, high = np.array([run["scores"][metric] for run in runs]).T
    return (high - low) / 2, values


def behind(ours: list[dict], runs: list[dict], metric: str) -> Sample | None:
    """Ours less `runs`, of the seeds that both have; None where none has right answers by group."""
    pairs = [
        (one["by_group"], other["by_group"]) for one in ours for other in runs
        if one["seed"] == other["seed"] and metric in one["by_group"] and metric in other["by_group"]
    ]  # fmt: skip
    if not pairs:
        return None
    more = [np.subtract(one[metric], other[metric]) for one, other in pairs]  # of each group
    videos = [np.array(one["videos"]) for one, _ in pairs]
    values = np.array([each.sum() / count.sum() for each, count in zip(more, videos, strict=True)])
    if of_folds(ours):
        return np.array([reach_of(each, count) for each, count in zip(more, videos, strict=True)]), values
    return np.repeat(reach_of(np.mean(more, axis=0), videos[0]), len(pairs)), values


def of_folds(runs: list[dict]) -> bool:
    """Whether each seed has groups of its own: videos that were not made here, a manifest a fold."""
    return runs[0]["textures"] == 0


def reach_of(more: np.ndarray, videos: np.ndarray) -> float:
    """Half of the 95% interval of sum(more) / sum(videos), each f64 [G], over groups."""
    draws = Bootstrap(np.arange(len(videos)), 1000, 0).draws
    low, high = np.percentile((draws @ more) / (draws @ videos), [100 * (1 - LEVEL), 100 * LEVEL])
    return (high - low) / 2


def joined(sample: Sample, spread: Spread, folds: bool) -> float:
    """Half of the 95% interval of the mean of runs.

    Seeds on the same groups share the error over them. Folds have groups of their own, so that error is less for
    their mean.
    """
    reaches, values = sample
    of_groups = math.hypot(*reaches) / len(values) if folds else float(reaches.mean())
    if not spread.freedom:
        return of_groups
    of_seeds = stats.t.ppf(LEVEL, spread.freedom) * math.sqrt(spread.variance / len(values))
    return math.hypot(of_groups, of_seeds)


def spreads(samples: dict[str, Sample], trained: set[str], folds: bool) -> dict[str, Spread]:
    """By recipe: dispersion * p (1 - p). Those that are trained have one dispersion in common, the others each their own."""
    pools = [trained & samples.keys(), *({name} for name in samples if name not in trained)]
    return {
        name: spread
        for pool in pools
        for name, spread in pooled({name: samples[name] for name in pool}, folds).items()
    }


def pooled(samples: dict[str, Sample], folds: bool) -> dict[str, Spread]:
    """By recipe, of one dispersion. A recipe whose runs are all at 0 or at 1 says nothing of it."""
    scales = {name: values.mean() * (1 - values.mean()) for name, (_, values) in samples.items()}
    freedom, total = 0, 0.0
    for name, (reaches, values) in samples.items():
        if len(values) > 1 and scales[name] > 0:
            of_groups = np.mean((reaches / stats.norm.ppf(LEVEL)) ** 2) if folds else 0.0
            freedom += len(values) - 1
            total += (len(values) - 1) * (np.var(values, ddof=1) - of_groups) / scales[name]
    dispersion = max(0.0, total / freedom) if freedom else 0.0
    return {name: Spread(float(dispersion * scale), freedom) for name, scale in scales.items()}


def cell(sample: Sample, spread: Spread, folds: bool) -> str:
    """Mean and half of the interval, in per cent."""
    return f"{100 * sample[1].mean():.1f} ± {100 * joined(sample, spread, folds):.1f}"


def curve(runs: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds f64 [n] and kNN f64 [n] on the validation part, means over seeds; the last point is the end."""
    seconds, values = np.array([run["curve"] for run in runs]).mean(axis=0).T
    return seconds, values


def table(lines: list[dict], ours: str) -> str:
    """GitHub markdown, the best kNN first."""
    recipes = {
        line["recipe"]: [other for other in lines if other["recipe"] == line["recipe"]] for line in lines
    }
    order = sorted(recipes, key=lambda name: -mean(recipes[name], "knn_accuracy"))
    folds, trained = of_folds(lines), {line["recipe"] for line in lines if line["steps"]}
    others = [name for name in order if name != ours and ours in recipes]
    columns: list[dict[str, str]] = []  # of each metric, by recipe
    less: dict[str, list[str]] = {name: [] for name in order}
    for metric in METRICS:
        samples = {name: scored(recipes[name], metric) for name in order}
        spread = spreads(samples, trained, folds)
        columns.append({name: cell(samples[name], spread[name], folds) for name in order})
        for name in others:
            if difference := behind(recipes[ours], recipes[name], metric):
                less[name].append(cell(difference, spread[ours].apart(spread[name]), folds))
    measured = [*METRICS.values(), *FORECAST.values()]
    heads = ["recipe", "seeds", "steps", *measured, "rank", "behind", "catches up"]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in order:
        runs = recipes[name]
        row = [name, str(len(runs)), f"{statistics.mean(run['steps'] for run in runs):.0f}"]
        row += [column[name] for column in columns]
        for kind in FORECAST:
            gaps = [
                metric for metric in runs[0]["scores"]
                if metric.startswith(f"{kind}_") and all(metric in run["scores"] for run in runs)
            ]  # fmt: skip
            row.append(", ".join(f"{mean(runs, gap):.2f}" for gap in gaps))
        row.append(f"{mean(runs, 'effective_rank'):.1f}")
        row.append(", ".join(less[name]))
        row.append(_caught(recipes.get(ours, []), runs) if name != ours and runs[0]["steps"] else "")
        rows.append("| " + " | ".join(row) + " |")
    return "\n".join(rows)


def _caught(ours: list[dict], runs: list[dict]) -> str:
    if not ours:
        return ""
    seconds, values = curve(ours)
    reached = np.flatnonzero(values >= curve(runs)[1][-1])
    return f"{seconds[reached[0]] / 60:.1f} min" if len(reached) else "never"


def picture(lines: list[dict], path: Path) -> None:
    """kNN of every recipe while it trains; what does not train is a dotted line."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name in dict.fromkeys(line["recipe"] for line in lines):
        runs = [line for line in lines if line["recipe"] == name]
        if not runs[0]["steps"]:
            level = 100 * mean(runs, "knn_accuracy")
            axes.axhline(level, color="grey", ls=":", lw=1)
            axes.annotate(name, (0.3, level), fontsize=8, color="grey", va="bottom")
            continue
        seconds, values = curve(runs)
        axes.plot(seconds / 60, 100 * values, marker="o", ms=3, label=name)
    axes.set(
        xlabel="minutes of training on one core", ylabel="kNN accuracy, %", xlim=(0, None), ylim=(0, 101)
    )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
