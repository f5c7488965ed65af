"""Lines of benchmarks/results/learning.jsonl -> a table, and a picture of quality against time.

An interval is of the mean over seeds: the error over textures, which all seeds share, and that over seeds, added in
squares; where each seed is a fold with videos of its own, as `joined` says. `behind` is the difference to ours of the same
seeds on the same textures, in kNN, R@1 and probe, whose interval is narrower than those of the two: where it is above zero,
ours is better beyond chance. `catches up` is when ours reaches what a recipe has at its end, on the validation part, as
the curves are.
"""

import math
import statistics
from pathlib import Path

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
SKILL, LEVEL = "skill_", 0.975  # of a normal or t distribution: both tails leave 95%


def combined(runs: list[dict], metric: str) -> tuple[float, float]:
    """Mean over the seeds' runs and half of its 95% interval."""
    values, low, high = np.array([run["scores"][metric] for run in runs]).T
    return values.mean(), joined((high - low) / 2, values, of_folds(runs))


def behind(ours: list[dict], runs: list[dict], metric: str) -> tuple[float, float] | None:
    """Ours less `runs`, over the seeds that both have, and half of its 95% interval."""
    pairs = [
        (one["by_group"], other["by_group"]) for one in ours for other in runs
        if one["seed"] == other["seed"] and metric in one["by_group"] and metric in other["by_group"]
    ]  # fmt: skip
    if not pairs:
        return None
    more = [np.subtract(one[metric], other[metric]) for one, other in pairs]  # of each group
    videos = [np.array(one["videos"]) for one, _ in pairs]
    values = np.array([each.sum() / count.sum() for each, count in zip(more, videos, strict=True)])
    if folds := of_folds(ours):
        reaches = np.array([reach_of(each, count) for each, count in zip(more, videos, strict=True)])
    else:
        reaches = np.repeat(reach_of(np.mean(more, axis=0), videos[0]), len(pairs))
    return values.mean(), joined(reaches, values, folds)


def of_folds(runs: list[dict]) -> bool:
    """Whether each seed has groups of its own: videos that were not made here, a manifest a fold."""
    return runs[0]["textures"] == 0


def reach_of(more: np.ndarray, videos: np.ndarray) -> float:
    """Half of the 95% interval of sum(more) / sum(videos), each f64 [G], over groups."""
    draws = Bootstrap(np.arange(len(videos)), 1000, 0).draws
    low, high = np.percentile((draws @ more) / (draws @ videos), [100 * (1 - LEVEL), 100 * LEVEL])
    return (high - low) / 2


def joined(reaches: np.ndarray, values: np.ndarray, folds: bool) -> float:
    """Half of the 95% interval of the mean of runs, each with a value and its reach over groups, f64 [n].

    Seeds on the same groups share the error over them, and that over seeds is added in squares. Folds have groups of
    their own: that error is less for their mean, and of the spread over folds only what exceeds it is added.
    """
    count = len(values)
    of_groups = math.hypot(*reaches) / count if folds else reaches.mean()
    if count < 2:
        return of_groups
    variance = np.var(values, ddof=1)
    if folds:
        variance = max(0.0, variance - np.mean((reaches / stats.norm.ppf(LEVEL)) ** 2))
    return math.hypot(of_groups, stats.t.ppf(LEVEL, count - 1) * math.sqrt(variance / count))


def curve(runs: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds f64 [n] and kNN f64 [n] on the validation part, means over seeds; the last point is the end."""
    seconds, values = np.array([run["curve"] for run in runs]).mean(axis=0).T
    return seconds, values


def table(lines: list[dict], ours: str) -> str:
    """GitHub markdown, the best kNN first."""
    recipes = {
        line["recipe"]: [other for other in lines if other["recipe"] == line["recipe"]] for line in lines
    }
    order = sorted(recipes, key=lambda name: -combined(recipes[name], "knn_accuracy")[0])
    heads = ["recipe", "seeds", "steps", *METRICS.values(), "skill by gap", "rank", "behind", "catches up"]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in order:
        runs = recipes[name]
        cells = [name, str(len(runs)), f"{statistics.mean(run['steps'] for run in runs):.0f}"]
        for metric in METRICS:
            mean, reach = combined(runs, metric)
            cells.append(f"{100 * mean:.1f} ± {100 * reach:.1f}")
        gaps = [metric for metric in runs[0]["scores"] if metric.startswith(SKILL)]
        cells.append(", ".join(f"{combined(runs, gap)[0]:.2f}" for gap in gaps))
        cells.append(f"{combined(runs, 'effective_rank')[0]:.1f}")
        less = (
            [behind(recipes[ours], runs, metric) for metric in METRICS]
            if ours in recipes and name != ours
            else []
        )
        cells.append(", ".join(f"{100 * each[0]:.1f} ± {100 * each[1]:.1f}" for each in less if each))
        cells.append(_caught(recipes.get(ours, []), runs) if name != ours and runs[0]["steps"] else "")
        rows.append("| " + " | ".join(cells) + " |")
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
            level = 100 * combined(runs, "knn_accuracy")[0]
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
