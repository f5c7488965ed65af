"""A 2-D map of the embeddings of test videos, coloured by class, and its legend."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from mofore.evaluation.charts import COLOURS, INK, MARKERS, Chart, to_data_uri

GREY = "#8a8f98"
MAX_MAPPED = 2000  # embeddings on one map: t-SNE takes about 10 s for these on one core
MIN_TSNE_POINTS = 60  # with fewer points there are no neighbourhoods for t-SNE to show


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """How one class is drawn.

    points: corners of its marker in a box of -1..1, as of an SVG polygon; "" for the entry of all
    remaining classes, which are drawn as grey dots.
    """

    label: str
    count: int
    colour: str
    points: str


def project(embeddings: np.ndarray) -> tuple[np.ndarray, str]:
    """Project f32 [N, D] to f64 [N, 2] with a fixed seed. Also returns a description of the method.

    PCA to at most 50 dimensions, then t-SNE (van der Maaten and Hinton, 2008); with fewer than
    MIN_TSNE_POINTS points, PCA alone.
    """
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    count, width = embeddings.shape
    tsne = count >= MIN_TSNE_POINTS
    reduced = PCA(min(50 if tsne else 2, width, count), random_state=0).fit_transform(embeddings)
    if not tsne:
        return np.pad(reduced, ((0, 0), (0, 2 - reduced.shape[1]))), "PCA"
    perplexity = min(30, (count - 1) // 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(reduced)
    return points, (
        f"PCA to {reduced.shape[1]} dimensions, then t-SNE (perplexity {perplexity}, seed 0; "
        "distances between clusters are not meaningful)"
    )


def mapped_rows(count: int) -> np.ndarray:
    """Indices (i64) of the embeddings on the map: all, or MAX_MAPPED of them evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_MAPPED)).round().astype(int))


def scatter(
    encoder: str, points: np.ndarray, labels: Sequence[str], legend: Sequence[LegendEntry]
) -> Chart:
    """The map of an encoder. points: f64 [N, 2]; colour and marker together identify the class."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    ax = figure.subplots()
    names = np.asarray(labels)
    styles = {entry.label: _style(number) for number, entry in enumerate(legend) if entry.points}
    rest = ~np.isin(names, list(styles))
    size = float(np.clip(9000 / len(points), 12, 40))
    x, y = points.T
    ax.scatter(x[rest], y[rest], s=size / 2, c=GREY, linewidths=0)
    for label, (colour, marker) in styles.items():
        chosen = names == label
        ax.scatter(
            x[chosen], y[chosen], s=size, c=colour, marker=marker, edgecolors=INK, linewidths=0.35
        )
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(color=INK, alpha=0.25)
    alt = f"2-D map of {len(points)} test embeddings of the {encoder} encoder"
    return Chart(encoder, to_data_uri(figure), alt + (", coloured by class." if legend else "."))


def build_legend(labels: Sequence[str]) -> list[LegendEntry]:
    """Classes in alphabetical order, each with its own colour and marker.

    If there are more than 48 classes, the rarest are grey.
    """
    counts = Counter(label for label in labels if label)
    max_styles = len(COLOURS) * len(MARKERS)
    by_count = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    styled = sorted(label for label, _ in by_count[:max_styles])
    entries = [
        LegendEntry(label, counts[label], _style(i)[0], _marker_points(_style(i)[1]))
        for i, label in enumerate(styled)
    ]
    if len(counts) > max_styles:
        rest = sum(counts.values()) - sum(entry.count for entry in entries)
        entries.append(LegendEntry(f"{len(counts) - max_styles} other classes", rest, GREY, ""))
    return entries


def _style(number: int) -> tuple[str, str]:
    # 6 colours and 8 markers advance together, so that neighbours in the legend differ in both.
    # They repeat after lcm(6, 8) = 24, where the markers are shifted by one: 48 different pairs.
    return COLOURS[number % 6], MARKERS[(number + number // 24) % 8]


def _marker_points(marker: str) -> str:
    style = MarkerStyle(marker)
    corners = style.get_transform().transform(style.get_path().to_polygons()[0])
    corners = corners / np.abs(corners).max()
    return " ".join(f"{x:.2f},{-y:.2f}" for x, y in corners)
