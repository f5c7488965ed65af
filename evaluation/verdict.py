"""Summary of an evaluation: whether pretraining helped, headline numbers, a collapse warning.

A difference counts as significant only if the two 95% intervals do not overlap.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mofore.evaluation.results_table import (
    Cell,
    encoder_names,
    find_metric,
    format_cell,
    group_by_metric,
)

VERDICT_METRICS = ("knn_accuracy", "linear_probe_accuracy", "retrieval_r1")
HEADLINE_METRICS = (*VERDICT_METRICS, "effective_rank", "stability_margin", "same_video_cosine")
MAX_HEADLINES = 4
# An encoder that works uses tens of dimensions and has a std near 1. Below either of these
# thresholds it has nearly collapsed, and its cosines are near 1 for any input.
MIN_RANK, MIN_RANK_FRACTION, MIN_STD = 2.0, 0.05, 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """kind: "better", "unclear" or "worse". lines: sentences; the first is the verdict itself."""

    kind: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Headline:
    """One headline number of the trained encoder, with the untrained encoder's if there is one."""

    label: str
    trained: Cell
    untrained: Cell | None


def summarise(results: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compare trained with untrained and with the other encoders, on VERDICT_METRICS."""
    rows = group_by_metric(results)
    signs = {name: _compare(rows.get(name, {}), ("untrained",)) for name in VERDICT_METRICS}
    above, equal, below = (_labels(name for name in signs if signs[name] == s) for s in (1, 0, -1))
    if not above + equal + below:
        return Verdict(
            "unclear",
            (
                "Not judged: no recognition or retrieval metric has intervals for both the trained "
                "and the untrained encoder.",
            ),
        )
    lines = []
    if above:
        lines.append(
            f"Trained is significantly above untrained (95% intervals do not overlap): {above}."
        )
    if below:
        lines.append(
            f"Trained is significantly BELOW untrained (95% intervals do not overlap): {below}."
        )
    if equal:
        lines.append(f"No significant difference from untrained (95% intervals overlap): {equal}.")
    others = tuple(e for e in encoder_names(results) if e not in ("trained", "untrained"))
    other_signs = {name: _compare(rows.get(name, {}), others) for name in VERDICT_METRICS}
    not_above = _labels(name for name, sign in other_signs.items() if sign in (0, -1))
    if not_above:
        better = f"the better of {' and '.join(others)}" if len(others) > 1 else others[0]
        lines.append(f"Not significantly above {better}: {not_above}.")
    elif others:
        lines.append(f"Also significantly above {' and '.join(others)}.")
    better_throughout = above and not equal and not not_above
    kind = "worse" if below else "better" if better_throughout else "unclear"
    return Verdict(kind, tuple(lines))


def headlines(results: Sequence[Mapping[str, Any]]) -> list[Headline]:
    """The first MAX_HEADLINES of HEADLINE_METRICS that the trained encoder has."""
    rows = group_by_metric(results)
    found = []
    for name in HEADLINE_METRICS:
        row, metric = rows.get(name, {}), find_metric(name)
        trained = format_cell(row.get("trained"), metric)
        untrained = format_cell(row.get("untrained"), metric)
        if trained.value is not None:
            reference = untrained if untrained.value is not None else None
            found.append(Headline(metric.label, trained, reference))
    return found[:MAX_HEADLINES]


def collapse_warning(
    effective_rank: float | None, embedding_std: float | None, max_rank: int | None
) -> str | None:
    """A warning if the trained embeddings have nearly collapsed.

    max_rank: the largest possible effective rank, if known.
    """
    min_rank = max(MIN_RANK, MIN_RANK_FRACTION * (max_rank or 0))
    signs = []
    if effective_rank is not None and effective_rank < min_rank:
        of_max = f" of at most {max_rank}" if max_rank else ""
        signs.append(f"effective rank {effective_rank:.2f}{of_max} (below {min_rank:.1f})")
    if embedding_std is not None and embedding_std < MIN_STD:
        signs.append(f"embedding std {embedding_std:.3f} (below {MIN_STD})")
    if not signs:
        return None
    return (
        f"The embeddings have nearly collapsed: {', '.join(signs)}. "
        "The stability and forecasting metrics are not meaningful."
    )


def _compare(row: Mapping[str, Mapping[str, Any]], others: Sequence[str]) -> int | None:
    """Trained against the best of the others: +1 significantly above, -1 below, 0 neither.

    None if either has no interval.
    """
    known = {e: r for e, r in row.items() if None not in (r["value"], r["low"], r["high"])}
    rivals = [known[encoder] for encoder in others if encoder in known]
    if "trained" not in known or not rivals:
        return None
    trained, best = known["trained"], max(rivals, key=lambda result: result["value"])
    return int(trained["low"] > best["high"]) - int(trained["high"] < best["low"])


def _labels(metrics: Iterable[str]) -> str:
    return ", ".join(find_metric(name).label for name in metrics)
