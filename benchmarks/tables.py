"""Lines of benchmarks/results/*.jsonl -> a markdown table, and a plot of quality against time.

Intervals are those of `benchmarks.seed_intervals`. "Δ to MoFore" is MoFore minus the recipe, in
kNN, R@1 and probe, paired by group; if its interval lies above zero, MoFore is significantly
better. "time to match" is the time at which MoFore's kNN reaches the recipe's final kNN, on the
validation split.
"""

import statistics
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.seed_intervals import (
    Sample,
    SeedVariance,
    half_width,
    half_width_over_groups,
    seed_variances,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRICS = {
    "knn_accuracy": "kNN",
    "retrieval_r1": "R@1",
    "linear_probe_accuracy": "probe",
    "clip_order_accuracy": "clip order",
}
FORECAST_METRICS = {"skill": "skill by gap", "r2": "R² by gap"}
DELTA, TIME_TO_MATCH = "Δ to {}", "time to match"


def mean_score(runs: list[dict], metric: str) -> float:
    """Mean over seeds."""
    return statistics.mean(run["scores"][metric][0] for run in runs)


def read_sample(runs: list[dict], metric: str) -> Sample:
    """Half-widths over groups and values of a metric."""
    values, low, high = np.array([run["scores"][metric] for run in runs]).T
    return (high - low) / 2, values


def paired_difference(reference: list[dict], runs: list[dict], metric: str) -> Sample | None:
    """The reference minus `runs`, on the seeds that both have; None without counts by group."""
    pairs = [
        (one["correct_by_group"], other["correct_by_group"])
        for one in reference
        for other in runs
        if one["seed"] == other["seed"]
        and metric in one["correct_by_group"]
        and metric in other["correct_by_group"]
    ]
    if not pairs:
        return None
    gains = [np.subtract(one[metric], other[metric]) for one, other in pairs]  # [G] each
    videos = [np.array(one["videos"]) for one, _ in pairs]
    values = np.array([gain.sum() / count.sum() for gain, count in zip(gains, videos, strict=True)])
    if are_folds(reference):
        half_widths = map(half_width_over_groups, gains, videos)
        return np.array(list(half_widths)), values
    shared = half_width_over_groups(np.mean(gains, axis=0), videos[0])
    return np.repeat(shared, len(pairs)), values


def are_folds(runs: list[dict]) -> bool:
    """Whether every seed has separate videos: a dataset given by one manifest per fold."""
    return runs[0]["textures"] == 0


def format_percent(sample: Sample, variance: SeedVariance, folds: bool) -> str:
    """Mean and half-width, in per cent."""
    return f"{100 * sample[1].mean():.1f} ± {100 * half_width(sample, variance, folds):.1f}"


def learning_curve(runs: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds f64 [n] and validation kNN f64 [n], means over seeds; the last point is the end."""
    seconds, values = np.array([run["curve"] for run in runs]).mean(axis=0).T
    return seconds, values


def build_table(lines: list[dict], reference: str) -> str:
    """GitHub markdown, best kNN first. Columns without any value are left out."""
    recipes: dict[str, list[dict]] = {}
    for line in lines:
        recipes.setdefault(line["recipe"], []).append(line)
    order = sorted(recipes, key=lambda name: -mean_score(recipes[name], "knn_accuracy"))
    columns = {
        "recipe": {name: name for name in order},
        "seeds": {name: str(len(recipes[name])) for name in order},
        "steps": {
            name: f"{statistics.mean(run['steps'] for run in recipes[name]):.0f}" for name in order
        },
        **_score_columns(recipes, reference),
    }
    columns = {head: cells for head, cells in columns.items() if any(cells.values())}
    rows = [list(columns), *([cells.get(name, "") for cells in columns.values()] for name in order)]
    text = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([text[0], "|" + "---|" * len(columns), *text[1:]])


def _score_columns(recipes: dict[str, list[dict]], reference: str) -> dict[str, dict[str, str]]:
    """Cells by column and recipe."""
    lines = [run for runs in recipes.values() for run in runs]
    folds, trained = are_folds(lines), {line["recipe"] for line in lines if line["steps"]}
    others = [name for name in recipes if name != reference and reference in recipes]
    columns: dict[str, dict[str, str]] = {}
    differences: dict[str, list[str]] = {name: [] for name in others}
    for metric, head in METRICS.items():
        samples = {name: read_sample(runs, metric) for name, runs in recipes.items()}
        variances = seed_variances(samples, trained, folds)
        columns[head] = {
            name: format_percent(samples[name], variances[name], folds) for name in recipes
        }
        for name in others:
            if difference := paired_difference(recipes[reference], recipes[name], metric):
                variance = variances[reference].plus(variances[name])
                differences[name].append(format_percent(difference, variance, folds))
    for kind, head in FORECAST_METRICS.items():
        columns[head] = {name: _scores_by_gap(runs, kind) for name, runs in recipes.items()}
    columns["rank"] = {
        name: f"{mean_score(runs, 'effective_rank'):.1f}" for name, runs in recipes.items()
    }
    columns[DELTA.format(reference)] = {name: ", ".join(differences[name]) for name in others}
    columns[TIME_TO_MATCH] = {
        name: time_to_match(recipes[reference], recipes[name])
        for name in others
        if recipes[name][0]["steps"]
    }
    return columns


def _scores_by_gap(runs: list[dict], kind: str) -> str:
    """Means over seeds at each gap, if every run has them."""
    gaps = [metric for metric in runs[0]["scores"] if metric.startswith(f"{kind}_")]
    gaps = [metric for metric in gaps if all(metric in run["scores"] for run in runs)]
    return ", ".join(f"{mean_score(runs, gap):.2f}" for gap in gaps)


def time_to_match(reference: list[dict], runs: list[dict]) -> str:
    """When the reference's kNN first reaches the final kNN of `runs`."""
    seconds, values = learning_curve(reference)
    reached = np.flatnonzero(values >= learning_curve(runs)[1][-1])
    return f"{seconds[reached[0]] / 60:.1f} min" if len(reached) else "never"


def draw_plot(lines: list[dict], path: Path) -> None:
    """kNN of every recipe during training; recipes without training are dotted lines."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name in dict.fromkeys(line["recipe"] for line in lines):
        runs = [line for line in lines if line["recipe"] == name]
        if not runs[0]["steps"]:
            level = 100 * mean_score(runs, "knn_accuracy")
            axes.axhline(level, color="grey", ls=":", lw=1)
            axes.annotate(name, (0.3, level), fontsize=8, color="grey", va="bottom")
            continue
        seconds, values = learning_curve(runs)
        axes.plot(seconds / 60, 100 * values, marker="o", ms=3, label=name)
    axes.set(
        xlabel="minutes of training on one core (normalised)",
        ylabel="kNN accuracy, %",
        xlim=(0, None),
        ylim=(0, 101),
    )
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
