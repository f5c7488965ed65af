"""Lines of benchmarks/results/learning.jsonl -> a table, and a picture of quality against time.

An interval is of the mean over seeds: the error over textures, which all seeds share, and that over seeds, added in
squares. `behind` is the difference to ours of the same seeds on the same textures, whose interval is narrower than those of
the two: where it is above zero, ours is better beyond chance. `catches up` is when ours reaches what a recipe has at its end, on the validation part, as the curves are.
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
    values = [run["scores"][metric][0] for run in runs]
    reach = statistics.mean((run["scores"][metric][2] - run["scores"][metric][1]) / 2 for run in runs)
    return statistics.mean(values), with_seeds(reach, np.array(values))


def behind(ours: list[dict], runs: list[dict]) -> tuple[float, float] | None:
    """kNN of ours less that of `runs`, over the seeds that both have, and half of its 95% interval."""
    pairs = [
        (one["knn_groups"], other["knn_groups"]) for one in ours for other in runs
        if one["seed"] == other["seed"] and one["knn_groups"] and other["knn_groups"]
    ]  # fmt: skip
    if not pairs:
        return None
    more = np.array([np.subtract(one[0], other[0]) for one, other in pairs])  # [seeds, groups]
    draws, videos = Bootstrap(np.arange(more.shape[1]), 1000, 0).draws, np.array(pairs[0][0][1])
    of_groups = (draws @ more.mean(axis=0)) / (draws @ videos)
    reach = (np.percentile(of_groups, 100 * LEVEL) - np.percentile(of_groups, 100 * (1 - LEVEL))) / 2
    return float(of_groups[0]), with_seeds(reach, more.sum(axis=1) / videos.sum())


def with_seeds(reach: float, values: np.ndarray) -> float:
    """Half of an interval over groups, and that of the mean over seeds."""
    if len(values) < 2:
        return reach
    of_seeds = stats.t.ppf(LEVEL, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return math.hypot(reach, of_seeds)


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
        less = behind(recipes.get(ours, []), runs) if name != ours else None
        cells.append(f"{100 * less[0]:.1f} ± {100 * less[1]:.1f}" if less else "")
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
