"""Results (a dict a number, as in results.json) in, what the report prints out: table, verdict, headline figures.

`table` lays encoders side by side, one row a metric, grouped by subject, with protocols and notes as numbered
footnotes. `verdict` says whether training helped, and claims a difference only where two 95% intervals do not
overlap. `collapse_warning` says when stability numbers mean nothing.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ENCODERS = ("trained", "untrained", "pixels", "frame differences")
JUDGED = ("knn_accuracy", "linear_probe_accuracy", "retrieval_r1")
FIGURES = (*JUDGED, "effective_rank", "stability_margin", "same_video_cosine")
# A healthy encoder uses tens of directions and has a deviation near 1; below either of these it has all but
# collapsed, and its cosines are near 1 whatever it is shown.
LEAST_RANK_SHARE, LEAST_RANK, LEAST_DEVIATION = 0.05, 2.0, 0.1


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is printed. better: +1 higher, -1 lower, 0 neither is better by itself."""

    group: str
    label: str
    better: int = 0
    percent: bool = False


# The first pattern that matches a metric's name; what none matches is printed under "Other", with its own name.
METRICS: dict[str, Metric] = {
    r"knn_accuracy": Metric("Recognition", "kNN accuracy", 1, True),
    r"linear_probe_accuracy": Metric("Recognition", "linear probe accuracy", 1, True),
    r"attentive_probe_accuracy": Metric("Recognition", "attentive probe accuracy", 1, True),
    r"retrieval_r(\d+)": Metric("Retrieval", r"R@\1", 1, True),
    r"retrieval_map": Metric("Retrieval", "mAP", 1, True),
    r"(same|different)_(video|class)_cosine": Metric("Stability", r"\1-\2 cosine"),
    r"neighbour_cosine": Metric("Stability", "neighbour cosine"),
    r"stability_(.+)": Metric("Stability", r"stability \1", 1),
    # Each encoder forecasts its own latents, so only what is relative to its own baselines can be compared.
    r"forecast_relative(.*)": Metric("Forecasting", r"forecast / persistence\1", -1),
    r"forecast_r2(.*)": Metric("Forecasting", r"forecast R²\1", 1),
    r"(forecast|persistence|mean_latent)_mse(.*)": Metric("Forecasting", r"\1 MSE\2"),
    r"effective_rank": Metric("Collapse", "effective rank"),
    r"embedding_std": Metric("Collapse", "embedding deviation"),
}
GROUPS = ("Recognition", "Retrieval", "Stability", "Forecasting", "Collapse", "Other")


@dataclass(frozen=True, slots=True)
class Cell:
    """One number as text; value is None where there is none, and the reason is among the row's footnotes."""

    value: str | None
    interval: str = ""
    spread: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One metric: a cell an encoder, on how many it was measured, numbers of its footnotes."""

    label: str
    cells: tuple[Cell, ...]
    n: str
    footnotes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The whole table; groups: title -> rows."""

    encoders: tuple[str, ...]
    groups: dict[str, list[Row]]
    footnotes: list[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind: "better", "unclear" or "worse"; lines: sentences, the first of them the verdict itself."""

    kind: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """One large figure: trained, and untrained beside it (None where there is none)."""

    label: str
    trained: Cell
    untrained: Cell | None


def describe(name: str) -> Metric:
    """The metric of that name in results.json."""
    for pattern, metric in METRICS.items():
        if match := re.fullmatch(pattern, name):
            label = match.expand(metric.label).replace("_", " ")
            return Metric(metric.group, label, metric.better, metric.percent)
    return Metric("Other", name.replace("_", " "))


def encoders_of(results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Those of ENCODERS that were measured, then any others in the order they come in."""
    present = list(dict.fromkeys(result["encoder"] for result in results))
    return (*(e for e in ENCODERS if e in present), *(e for e in present if e not in ENCODERS))


def by_metric(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """metric -> encoder -> result; a metric under several protocols is several metrics, "name, protocol"."""
    count: dict[tuple[str, str], int] = defaultdict(int)
    for result in results:
        count[result["metric"], result["encoder"]] += 1
    several = {metric for (metric, _), times in count.items() if times > 1}
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for result in results:
        metric = result["metric"]
        name = f"{metric}\t{result['protocol']}" if metric in several else metric
        rows.setdefault(name, {})[result["encoder"]] = result
    return rows


def table(results: Sequence[Mapping[str, Any]]) -> Table:
    """Every result, encoders side by side."""
    encoders = encoders_of(results)
    footnotes: list[str] = []
    groups: dict[str, list[Row]] = {group: [] for group in GROUPS}
    described = [(*name.partition("\t")[::2], row) for name, row in by_metric(results).items()]
    # In the order of the page, so that footnotes are numbered as they are met.
    for metric_name, protocol, row in sorted(
        described, key=lambda item: GROUPS.index(describe(item[0]).group)
    ):
        metric = describe(metric_name)
        told = _told(row)
        footnotes.extend(text for text in told if text not in footnotes)
        best = _best(metric, row)
        cells = tuple(cell(row.get(encoder), metric, encoder in best) for encoder in encoders)
        sizes = dict.fromkeys(str(row[e]["n"]) for e in encoders if e in row and row[e]["value"] is not None)
        label = f"{metric.label} ({protocol})" if protocol else metric.label
        numbers = tuple(footnotes.index(text) + 1 for text in told)
        groups[metric.group].append(Row(label, cells, " / ".join(sizes), numbers))
    return Table(encoders, {title: rows for title, rows in groups.items() if rows}, footnotes)


def cell(result: Mapping[str, Any] | None, metric: Metric, best: bool = False) -> Cell:
    """One result as text: percent with one decimal, others with three or four digits."""
    if result is None or result["value"] is None:
        return Cell(None)

    def text(value: float) -> str:
        if metric.percent:
            return f"{100 * value:.1f}"
        return f"{value:.{3 if abs(value) < 2 else 2 if abs(value) < 10 else 1}f}"

    known = result["low"] is not None and result["high"] is not None
    interval = f"[{text(result['low'])}, {text(result['high'])}]" if known else ""
    spread = result.get("spread")
    return Cell(
        text(result["value"]) + (" %" if metric.percent else ""),
        interval,
        text(spread) if spread is not None else "",
        best,
    )


def headlines(results: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """At most four figures for the top of the page."""
    rows = by_metric(results)
    found = []
    for name in FIGURES:
        row = rows.get(name, {})
        trained, metric = cell(row.get("trained"), describe(name)), describe(name)
        if trained.value is not None:
            other = cell(row.get("untrained"), metric)
            found.append(Headline(metric.label, trained, other if other.value is not None else None))
    return found[:4]


def verdict(results: Sequence[Mapping[str, Any]]) -> Verdict:
    """Trained beside untrained, then beside the stronger of the other encoders, on the metrics in JUDGED."""
    rows = by_metric(results)
    beside = {name: _beside(rows.get(name, {}), ("untrained",)) for name in JUDGED}
    judged = {describe(name).label: sign for name, sign in beside.items() if sign is not None}
    if not judged:
        why = "No recognition or retrieval number stands with an interval for both the trained and untrained encoder"
        return Verdict("unclear", (f"{why}, so whether training helped is not judged here.",))
    above, below = (", ".join(k for k, sign in judged.items() if sign == want) for want in (1, -1))
    level = ", ".join(label for label, sign in judged.items() if sign == 0)
    lines = []
    if above:
        lines.append(f"Trained is above untrained beyond the 95% intervals: {above}.")
    if below:
        lines.append(f"Trained is BELOW untrained beyond the 95% intervals: {below}.")
    if level:
        lines.append(f"No difference from untrained can be claimed, the intervals overlap: {level}.")
    others = tuple(encoder for encoder in encoders_of(results) if encoder not in ("trained", "untrained"))
    short = [describe(name).label for name in JUDGED if _beside(rows.get(name, {}), others) in (0, -1)]
    if short:
        lines.append(
            f"Not above the stronger of {' and '.join(others)} beyond the intervals: {', '.join(short)}."
        )
    elif others:
        lines.append(f"Above {' and '.join(others)} beyond the intervals too.")
    kind = "worse" if below else "better" if above and not level and not short else "unclear"
    return Verdict(kind, tuple(lines))


def collapse_warning(rank: float | None, deviation: float | None, most: int | None) -> str | None:
    """A sentence if the trained embeddings have all but collapsed. most: the largest rank possible, if known."""
    least = max(LEAST_RANK, LEAST_RANK_SHARE * (most or 0))
    signs = []
    if rank is not None and rank < least:
        of = f" of {most} possible" if most else ""
        signs.append(f"effective rank {rank:.2f}{of} (below {least:.1f})")
    if deviation is not None and deviation < LEAST_DEVIATION:
        signs.append(f"embedding deviation {deviation:.3f} (below {LEAST_DEVIATION})")
    if not signs:
        return None
    return f"The embeddings have all but collapsed: {', '.join(signs)}. Stability and forecasting numbers mean nothing."


def _told(row: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Protocols and notes of a row, each once, naming the encoders where it does not hold for all of them."""
    told: dict[str, list[str]] = {}
    for encoder, result in row.items():
        for text in (result["protocol"], result.get("note")):
            if text:
                told.setdefault(text, []).append(encoder)
    return [text if len(of) == len(row) else f"{', '.join(of)}: {text}" for text, of in told.items()]


def _best(metric: Metric, row: Mapping[str, Mapping[str, Any]]) -> set[str]:
    known = {encoder: metric.better * r["value"] for encoder, r in row.items() if r["value"] is not None}
    if not metric.better or len(set(known.values())) < 2:
        return set()
    return {encoder for encoder, value in known.items() if value == max(known.values())}


def _beside(row: Mapping[str, Mapping[str, Any]], others: Sequence[str]) -> int | None:
    """+1, 0, -1: trained above, level with or below the best of the others; None without both intervals."""
    known = {e: r for e, r in row.items() if None not in (r["value"], r["low"], r["high"])}
    rivals = [known[encoder] for encoder in others if encoder in known]
    if "trained" not in known or not rivals:
        return None
    trained, rival = known["trained"], max(rivals, key=lambda result: result["value"])
    return int(trained["low"] > rival["high"]) - int(trained["high"] < rival["low"])
