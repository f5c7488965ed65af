"""Numbers in, self-contained pictures out: training curves, intervals, a map of the embeddings.

metrics.jsonl (list of dicts) -> `curves`       -> one Picture a subject
results.json  (list of dicts) -> `intervals`    -> one Picture, encoders side by side
embeddings f32 [N, D]         -> `project` [N, 2] -> `scatter` -> one Picture, and `Legend` entries for HTML

A Picture is an SVG in a data URI. Its ink is `currentColor`, set inside the SVG by the reader's colour
scheme, so that one file is legible on white and on black. Text stays text: small files, sharp on a phone.
Only matplotlib's Figure is used, never pyplot: no global state, no display.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

INK = "#010203"  # stands for currentColor until the SVG is written
# Okabe and Ito, "Color universal design" (2008), without yellow (lost on white) and black (lost on black),
# the blue a little lighter, to be seen on both.
COLOURS = ("#1a7cc2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
MARKERS = "osD^vPX*"
GREY = "#8a8f98"
MOST_POINTS = 600  # drawn on one line: more than a chart has pixels only makes the file large
MOST_MAPPED = 2000  # embeddings on one map: t-SNE takes about 10 s for these on one core
TSNE_FROM = 60  # fewer points than this have no neighbourhoods for t-SNE to show

# title -> panels (key of metrics.jsonl, label, logarithmic)
CURVES: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "Loss": (("loss", "loss", False),),
    "Parts of the loss": (("forecast", "forecasting (MSE)", False), ("contrast", "InfoNCE", False)),
    "InfoNCE accuracy": (("contrast_accuracy", "share of pairs found among the negatives", False),),
    "Gradient norm": (("grad_norm", "L2 norm before clipping", True),),
    "Effective rank": (("effective_rank", "RankMe of the embeddings of a step", False),),
    "Embedding deviation": (("embedding_std", "0 collapsed, about 1 spread", False),),
    "Watch for collapse": (
        ("held_rank", "effective rank of the held videos", False),
        ("held_std", "their deviation", False),
        ("held_margin", "stability margin", False),
    ),
    "Schedules": (("lr", "learning rate", False), ("momentum", "teacher momentum", False)),
    "Throughput": (("samples_per_second", "samples/s", False),),
    "Waiting for data": (("data_wait", "share of a step's time", False),),
}


@dataclass(frozen=True, slots=True)
class Picture:
    """An image for the page: `uri` is a data URI, `alt` says in words what the image shows."""

    title: str
    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Legend:
    """How one class is drawn: colour and the corners of its marker in a box of -1..1 (SVG `points`)."""

    label: str
    count: int
    colour: str
    points: str


def curves(metrics: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Training curves, raw and smoothed; what was never logged is left out."""
    pictures = []
    for title, panels in CURVES.items():
        series = [(*_series(metrics, key), label, log) for key, label, log in panels]
        series = [one for one in series if len(one[0])]
        if not series:
            continue
        figure = Figure(figsize=(4.8, 3.1), layout="constrained")
        axes = np.atleast_1d(figure.subplots(len(series), 1, sharex=True))
        for ax, colour, (steps, values, label, log) in zip(axes, COLOURS, series, strict=False):
            _line(ax, steps, values, colour, label, log)
        axes[-1].set_xlabel("step")
        told = "; ".join(f"{label} from {v[0]:.4g} to {v[-1]:.4g}" for _, v, label, _ in series)
        first, last = series[0][0][[0, -1]]
        pictures.append(Picture(title, _uri(figure), f"{title}, steps {first:.0f} to {last:.0f}: {told}."))
    return pictures


def intervals(
    rows: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]], encoders: Sequence[str]
) -> Picture:
    """Values with their intervals, a line an encoder. `rows`: label and one result (or None) an encoder."""
    figure = Figure(figsize=(4.4, 0.9 + 0.6 * len(rows)), layout="constrained")
    ax = figure.subplots()
    slots = np.linspace(-0.27, 0.27, len(encoders)) if len(encoders) > 1 else np.zeros(1)
    for column, encoder in enumerate(encoders):
        cells = [(y, cells[column]) for y, (_, cells) in enumerate(rows)]
        known = [(y + slots[column], cell) for y, cell in cells if cell and cell["value"] is not None]
        colour, marker = COLOURS[column % len(COLOURS)], MARKERS[column % len(MARKERS)]
        for y, cell in known:
            if cell["low"] is not None and cell["high"] is not None:
                ax.plot([100 * cell["low"], 100 * cell["high"]], [y, y], color=colour, linewidth=2)
        points = [100 * cell["value"] for _, cell in known], [y for y, _ in known]
        ax.plot(*points, marker, color=colour, markersize=6.5, label=encoder)
    ax.set_yticks(range(len(rows)), [label for label, _ in rows], parse_math=False)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("%")
    _dress(ax, "x")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK, handletextpad=0.2)
    alt = "Values with intervals of the encoders side by side; the table below holds the same numbers."
    return Picture("Encoders side by side", _uri(figure), alt)


def project(embeddings: np.ndarray) -> tuple[np.ndarray, str]:
    """f32 [N, D] -> f64 [N, 2] and the name of the method, with a fixed seed.

    PCA to at most 50 dimensions, then t-SNE (van der Maaten and Hinton, 2008); PCA alone below TSNE_FROM points.
    """
    from sklearn.decomposition import PCA  # a second of import, for this function only
    from sklearn.manifold import TSNE

    count, width = embeddings.shape
    tsne = count >= TSNE_FROM
    reduced = PCA(min(50 if tsne else 2, width, count), random_state=0).fit_transform(embeddings)
    if not tsne:
        return np.pad(reduced, ((0, 0), (0, 2 - reduced.shape[1]))), "PCA"
    perplexity = min(30, (count - 1) // 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    name = f"PCA to {reduced.shape[1]} dimensions, then t-SNE (perplexity {perplexity}, seed 0)"
    return points, f"{name}, where distances between far groups mean little"


def mapped_rows(count: int) -> np.ndarray:
    """i64: which of `count` embeddings go on the map: all, or MOST_MAPPED of them evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_MAPPED)).round().astype(int))


def scatter(title: str, points: np.ndarray, labels: Sequence[str], legend: Sequence[Legend]) -> Picture:
    """A map of embeddings [N, 2]: colour and marker together name the class, as `legend` says."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    ax = figure.subplots()
    names = np.asarray(labels)
    style = {entry.label: _style(number) for number, entry in enumerate(legend) if entry.points}
    rest = ~np.isin(names, list(style))
    size = float(np.clip(9000 / len(points), 12, 40))
    x, y = points.T
    ax.scatter(x[rest], y[rest], s=size / 2, c=GREY, linewidths=0)
    for label, (colour, marker) in style.items():
        chosen = names == label
        ax.scatter(x[chosen], y[chosen], s=size, c=colour, marker=marker, edgecolors=INK, linewidths=0.35)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=INK, alpha=0.25)
    alt = f"Map of {len(points)} test embeddings of the {title} encoder in two dimensions"
    return Picture(title, _uri(figure), alt + (", coloured by class." if legend else "."))


def legend_of(labels: Sequence[str]) -> list[Legend]:
    """Classes in alphabetical order, each its own pair of colour and marker; past 48 the rarest share grey."""
    counts = Counter(label for label in labels if label)
    most = len(COLOURS) * len(MARKERS)
    shown = sorted(label for label, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most])
    entries = [
        Legend(name, counts[name], _style(i)[0], _corners(_style(i)[1])) for i, name in enumerate(shown)
    ]
    if len(counts) > most:
        others = sum(counts.values()) - sum(entry.count for entry in entries)
        entries.append(Legend(f"{len(counts) - most} other classes", others, GREY, ""))
    return entries


def _style(number: int) -> tuple[str, str]:
    # Six colours and eight markers advance together, so that neighbours in the legend differ in both;
    # they meet again after lcm(6, 8) = 24, where the markers move on by one: 48 different pairs.
    return COLOURS[number % 6], MARKERS[(number + number // 24) % 8]


def _corners(marker: str) -> str:
    style = MarkerStyle(marker)
    corners = style.get_transform().transform(style.get_path().to_polygons()[0])
    corners = corners / np.abs(corners).max()
    return " ".join(f"{x:.2f},{-y:.2f}" for x, y in corners)


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[key]) for row in metrics if isinstance(row.get(key), int | float)]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    steps, values = table[np.isfinite(table).all(1)].T
    return steps, values


def _line(ax: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str, log: bool) -> None:
    from scipy.ndimage import uniform_filter1d

    smooth = uniform_filter1d(values, max(1, len(values) // 30), mode="reflect")
    drawn = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(int))
    ax.plot(steps[drawn], values[drawn], color=colour, linewidth=0.8, alpha=0.35)
    ax.plot(steps[drawn], smooth[drawn], color=colour, linewidth=1.8, marker="o" if len(drawn) < 3 else None)
    if log and values.min() > 0 and values.max() > 30 * values.min():
        ax.set_yscale("log")
    else:
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_title(label, loc="left", fontsize=11, color=INK)
    _dress(ax, "both")


def _dress(ax: Axes, grid: Any) -> None:
    ax.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set(color=INK, alpha=0.4)
    ax.tick_params(colors=INK, labelsize=10, length=3)
    ax.xaxis.label.set(color=INK, size=10)


def _uri(figure: Figure) -> str:
    figure.patch.set_visible(False)
    for ax in figure.axes:
        ax.patch.set_visible(False)
    out = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "mofore"}
    with matplotlib.rc_context(settings):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    ink = ":root{color:#1f2328}@media(prefers-color-scheme:dark){:root{color:#d5d9e0}}"
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace("*{stroke-", ink + "*{stroke-", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()
