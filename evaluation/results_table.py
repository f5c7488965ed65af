"""The results of results.json as a table: one row per metric, one column per encoder.

A result is a dict: a `mofore.evaluation.intervals.Result` and its encoder. `build_table` formats
all results for the terminal and the report: rows grouped by topic, protocols and notes as numbered
footnotes.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENCODERS = ("trained", "untrained", "pixels", "frame differences")


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown. better: +1 if higher is better, -1 if lower is, 0 if neither."""

    group: str
    label: str
    better: int = 0
    percent: bool = False


# The first pattern that matches a metric's name. A metric without a match is shown under "Other".
METRICS: dict[str, Metric] = {
    r"knn_accuracy": Metric("Recognition", "kNN accuracy", 1, True),
    r"linear_probe_accuracy": Metric("Recognition", "linear probe accuracy", 1, True),
    r"retrieval_r(\d+)": Metric("Retrieval", r"R@\1", 1, True),
    r"(same|different)_(video|class)_cosine": Metric("Stability", r"\1-\2 cosine"),
    r"consecutive_view_cosine": Metric("Stability", "consecutive-view cosine"),
    r"stability_margin": Metric("Stability", "stability margin", 1),
    # Every encoder forecasts its own latents, so only errors relative to its own baselines compare.
    r"forecast_relative_mse": Metric("Forecasting", "forecast / persistence MSE", -1),
    r"forecast_r2": Metric("Forecasting", "forecast R²", 1),
    r"(forecast|persistence|mean_latent)_mse": Metric("Forecasting", r"\1 MSE"),
    r"effective_rank": Metric("Collapse", "effective rank"),
    r"embedding_std": Metric("Collapse", "embedding std"),
}
GROUPS = ("Recognition", "Retrieval", "Stability", "Forecasting", "Collapse", "Other")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as text. value: None without a number; a footnote of the row gives the reason."""

    value: str | None
    interval: str = ""
    std: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. cells: by encoder. n: number of videos or pairs. footnotes: their numbers."""

    label: str
    cells: tuple[Cell, ...]
    n: str
    footnotes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """groups: title -> rows."""

    encoders: tuple[str, ...]
    groups: dict[str, list[Row]]
    footnotes: list[str]


def build_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """All results, encoders side by side."""
    encoders = encoder_names(results)
    footnotes: list[str] = []
    groups: dict[str, list[Row]] = {group: [] for group in GROUPS}
    named = [(*key.partition("\t")[::2], row) for key, row in group_by_metric(results).items()]
    # In the order of the table, so that footnotes are numbered from top to bottom.
    named.sort(key=lambda item: GROUPS.index(find_metric(item[0]).group))
    for name, protocol, row in named:
        metric = find_metric(name)
        texts = _footnotes(row)
        footnotes.extend(text for text in texts if text not in footnotes)
        best = _best_encoders(metric, row)
        cells = tuple(
            format_cell(row.get(encoder), metric, encoder in best) for encoder in encoders
        )
        measured = [row[e]["n"] for e in encoders if e in row and row[e]["value"] is not None]
        n = " / ".join(dict.fromkeys(map(str, measured)))
        label = f"{metric.label} ({protocol})" if protocol else metric.label
        numbers = tuple(footnotes.index(text) + 1 for text in texts)
        groups[metric.group].append(Row(label, cells, n, numbers))
    return Table(encoders, {title: rows for title, rows in groups.items() if rows}, footnotes)


def find_metric(name: str) -> Metric:
    """How the metric with this name in results.json is shown."""
    for pattern, metric in METRICS.items():
        if match := re.fullmatch(pattern, name):
            label = match.expand(metric.label).replace("_", " ")
            return Metric(metric.group, label, metric.better, metric.percent)
    return Metric("Other", name.replace("_", " "))


def encoder_names(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The evaluated encoders: those of ENCODERS first, then others in order of appearance."""
    present = list(dict.fromkeys(result["encoder"] for result in results))
    return (*(e for e in ENCODERS if e in present), *(e for e in present if e not in ENCODERS))


def group_by_metric(
    results: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, Mapping[str, Any]]]:
    """metric -> encoder -> result.

    A metric with several protocols has one key for each: the metric, a tab, the protocol.
    """
    count: dict[tuple[str, str], int] = defaultdict(int)
    for result in results:
        count[result["metric"], result["encoder"]] += 1
    several = {metric for (metric, _), times in count.items() if times > 1}
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        metric = result["metric"]
        key = f"{metric}\t{result['protocol']}" if metric in several else metric
        rows.setdefault(key, {})[result["encoder"]] = result
    return rows


def format_cell(result: Mapping[str, Any] | None, metric: Metric, best: bool = False) -> Cell:
    """One result as text: percentages with one decimal, other numbers with three or four digits."""
    if result is None or result["value"] is None:
        return Cell(None)

    def text(value: float) -> str:
        if metric.percent:
            return f"{100 * value:.1f}"
        return f"{value:.{3 if abs(value) < 2 else 2 if abs(value) < 10 else 1}f}"

    low, high, std = result["low"], result["high"], result.get("std")
    return Cell(
        value=text(result["value"]) + (" %" if metric.percent else ""),
        interval=f"[{text(low)}, {text(high)}]" if None not in (low, high) else "",
        std=text(std) if std is not None else "",
        best=best,
    )


def _footnotes(row: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Protocols and notes of a row, each once, with the encoders if it does not apply to all."""
    encoders_by_text: dict[str, list[str]] = {}
    for encoder, result in row.items():
        for text in (result["protocol"], result.get("note")):
            if text:
                encoders_by_text.setdefault(text, []).append(encoder)
    return [
        text if len(encoders) == len(row) else f"{', '.join(encoders)}: {text}"
        for text, encoders in encoders_by_text.items()
    ]


def _best_encoders(metric: Metric, row: Mapping[str, Mapping[str, Any]]) -> set[str]:
    scores = {
        encoder: metric.better * result["value"]
        for encoder, result in row.items()
        if result["value"] is not None
    }
    if not metric.better or len(set(scores.values())) < 2:
        return set()
    return {encoder for encoder, score in scores.items() if score == max(scores.values())}
