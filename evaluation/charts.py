"""Self-contained SVG charts: training curves, and results with their intervals.

A Chart is an SVG in a data URI. Its axes and text are `currentColor`, which the SVG sets by the
reader's colour scheme, so that one file is legible on a light and on a dark page. Text stays text:
files are small and sharp at any zoom. Only matplotlib's Figure is used, never pyplot: no global
state, no display.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

INK = "#010203"  # placeholder, replaced by currentColor in the SVG
# Okabe and Ito, "Color universal design" (2008), without yellow (invisible on white) and black
# (invisible on black), and with a lighter blue that is visible on both.
COLOURS = ("#1a7cc2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
MARKERS = "osD^vPX*"
MAX_POINTS = 600  # per line: more than a chart has pixels would only enlarge the file

# title -> panels (key of metrics.jsonl, label, logarithmic)
CURVES: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "Loss": (("loss", "total loss", False),),
    "Loss terms": (
        ("forecast_loss", "forecast loss", False),
        ("contrastive_loss", "contrastive loss (InfoNCE)", False),
    ),
    "Contrastive accuracy": (("contrastive_accuracy", "top-1 accuracy of InfoNCE", False),),
    "Gradient norm": (("grad_norm", "L2 norm before clipping", True),),
    "Effective rank": (("effective_rank", "RankMe of the batch", False),),
    "Embedding std": (("embedding_std", "std per dimension (0: collapsed, 1: isotropic)", False),),
    "Collapse monitor": (
        ("monitor_effective_rank", "effective rank of the monitor clips", False),
        ("monitor_embedding_std", "embedding std", False),
        ("monitor_stability_margin", "stability margin", False),
    ),
    "Schedules": (("lr", "learning rate", False), ("teacher_momentum", "teacher momentum", False)),
    "Throughput": (("samples_per_second", "samples/s", False),),
    "Data wait": (("data_wait_fraction", "fraction of the step time", False),),
}


@dataclass(frozen=True, slots=True)
class Chart:
    """An image of the report.

    uri: data URI. alt: description in words for readers without images.
    """

    title: str
    uri: str
    alt: str


def training_curves(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Curves of metrics.jsonl, raw and smoothed; metrics that were never logged are left out."""
    charts = []
    for title, panels in CURVES.items():
        series = [(*_series(metrics, key), label, log) for key, label, log in panels]
        series = [each for each in series if len(each[0])]
        if not series:
            continue
        figure = Figure(figsize=(4.8, 3.1), layout="constrained")
        axes = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
        for ax, colour, (steps, values, label, log) in zip(axes, COLOURS, series, strict=False):
            _plot_curve(ax, steps, values, colour, label, log)
        axes[-1].set_xlabel("step")
        ranges = "; ".join(f"{label} from {v[0]:.4g} to {v[-1]:.4g}" for _, v, label, _ in series)
        first, last = series[0][0][[0, -1]]
        alt = f"{title}, steps {first:.0f} to {last:.0f}: {ranges}."
        charts.append(Chart(title, to_data_uri(figure), alt))
    return charts


def interval_chart(
    rows: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]], encoders: Sequence[str]
) -> Chart:
    """Values with their intervals.

    rows: the label of a metric, and a result or None per encoder.
    """
    figure = Figure(figsize=(4.4, 0.9 + 0.6 * len(rows)), layout="constrained")
    ax = figure.subplots()
    offsets = np.linspace(-0.27, 0.27, len(encoders)) if len(encoders) > 1 else np.zeros(1)
    for column, encoder in enumerate(encoders):
        results = [(y + offsets[column], row[column]) for y, (_, row) in enumerate(rows)]
        known = [(y, r) for y, r in results if r is not None and r["value"] is not None]
        colour, marker = COLOURS[column % len(COLOURS)], MARKERS[column % len(MARKERS)]
        for y, result in known:
            if None not in (result["low"], result["high"]):
                bounds = [100 * result["low"], 100 * result["high"]]
                ax.plot(bounds, [y, y], color=colour, linewidth=2)
        points = [100 * result["value"] for _, result in known], [y for y, _ in known]
        ax.plot(*points, marker, color=colour, markersize=6.5, label=encoder)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("%")
    _style_axes(ax, "x")
    figure.legend(
        loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, handletextpad=0.2
    )
    alt = "Values with intervals, encoders side by side; the table below has the same numbers."
    return Chart("Encoders side by side", to_data_uri(figure), alt)


def histogram(title: str, values: np.ndarray, label: str) -> Chart:
    """How many of `values`, f64 [n], at least one, fall into each bin.

    label: of the values, with their unit.
    """
    edges, log = bin_edges(values)
    counts, _ = np.histogram(values, edges)
    figure = Figure(figsize=(4.8, 2.6), layout="constrained")
    ax = figure.subplots()
    ax.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLOURS[0])
    if log:
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlabel(label)
    _style_axes(ax, "y")
    low, median, high = np.quantile(values, [0, 0.5, 1])
    alt = f"{title} in {label}: {low:.4g} to {high:.4g}, median {median:.4g}."
    return Chart(title, to_data_uri(figure), alt)


def bin_edges(values: np.ndarray, bins: int = 40) -> tuple[np.ndarray, bool]:
    """Edges f64 of bins that hold all values, and whether they are equally wide in the logarithm.

    They are if all values are above 0 and span more than two orders of magnitude.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([low - 0.5, high + 0.5]), False
    log = low > 0 and high > 100 * low
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    edges[0], edges[-1] = low, high  # geomspace rounds
    return edges, log


def to_data_uri(figure: Figure) -> str:
    """The figure as an SVG data URI; the same figure always gives the same text."""
    figure.patch.set_visible(False)
    for ax in figure.axes:
        ax.patch.set_visible(False)
    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "mofore"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    ink = ":root{color:#1f2328}@media(prefers-color-scheme:dark){:root{color:#d5d9e0}}"
    svg = svg.replace("*{stroke-", ink + "*{stroke-", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, f64 [n] each, where the metric was logged and is finite."""
    pairs = [(row["step"], row[key]) for row in metrics if isinstance(row.get(key), int | float)]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    steps, values = table[np.isfinite(table).all(1)].T
    return steps, values


def _plot_curve(
    ax: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str, log: bool
) -> None:
    from scipy.ndimage import uniform_filter1d  # slow to import

    smooth = uniform_filter1d(values, max(1, len(values) // 30), mode="reflect")
    count = min(len(values), MAX_POINTS)
    shown = np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))
    marker = "o" if len(shown) < 3 else None
    ax.plot(steps[shown], values[shown], color=colour, linewidth=0.8, alpha=0.35)
    ax.plot(steps[shown], smooth[shown], color=colour, linewidth=1.8, marker=marker)
    if log and values.min() > 0 and values.max() > 30 * values.min():
        ax.set_yscale("log")
    else:
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_title(label, loc="left", fontsize=11, color=INK)
    _style_axes(ax, "both")


def _style_axes(ax: Axes, grid: Any) -> None:
    ax.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=INK, alpha=0.4)
    ax.tick_params(colors=INK, labelsize=10, length=3)
    ax.xaxis.label.set(color=INK, size=10)
