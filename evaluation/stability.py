"""Temporal stability: similarity of two times of a video, compared with similarity between videos.

The table of MoFore (Xu, arXiv 2606.14765), over all test videos instead of one example pair. Except
for consecutive views, every cosine compares the mean embedding of the first half of a video's views
with that of the second half of the views of the same or of another video. Pairs of different videos
are counted only if they come from different source groups. A collapsed encoder scores 1.0
everywhere, so the table includes the effective rank and the embedding std.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mofore.collapse import effective_rank, embedding_std
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.features import Features, l2_normalise
from mofore.evaluation.intervals import Bootstrap, Result, jackknife

RELATIONS = ("different_video", "same_class", "different_class")


def half_embeddings(view_embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit-norm mean embeddings of the first and of the last V // 2 views.

    view_embeddings: f32 [N, V, D], V at least 2. Returns two f32 [N, D].
    """
    half = view_embeddings.shape[1] // 2
    first, second = view_embeddings[:, :half], view_embeddings[:, -half:]
    return l2_normalise(first.mean(axis=1)), l2_normalise(second.mean(axis=1))


def consecutive_view_cosine(view_embeddings: np.ndarray) -> np.ndarray:
    """Mean cosine of consecutive views of each video.

    view_embeddings: f32 [N, V, D]. Returns f32 [N].
    """
    views = l2_normalise(view_embeddings)
    return (views[:, 1:] * views[:, :-1]).sum(axis=-1).mean(axis=1)


@dataclass(slots=True)
class PairSums:
    """Sums and counts of cosines over ordered pairs of videos by bootstrap units, f64 [G, G]."""

    sums: np.ndarray
    counts: np.ndarray
    sum_of_squares: float = 0.0

    def add(
        self, cosines: np.ndarray, mask: np.ndarray, units: np.ndarray, starts: np.ndarray
    ) -> None:
        """Add a block of B videos against all N videos, which are sorted by unit.

        cosines: f64 [B, N]. mask: bool [B, N], which pairs count. units: i64 [B], units of the
        block's videos. starts: i64 [G], where each unit starts among the N videos.
        """
        chosen = np.where(mask, cosines, 0.0)
        np.add.at(self.sums, units, np.add.reduceat(chosen, starts, axis=1))
        np.add.at(self.counts, units, np.add.reduceat(mask.astype(np.float64), starts, axis=1))
        self.sum_of_squares += float((chosen**2).sum())

    @property
    def n(self) -> int:
        """Number of ordered pairs."""
        return int(self.counts.sum())

    @property
    def std(self) -> float | None:
        """Standard deviation over the pairs."""
        if not self.n:
            return None
        mean = self.sums.sum() / self.n
        return float(np.sqrt(max(self.sum_of_squares / self.n - mean**2, 0.0)))


def pair_cosines(features: Features, units: np.ndarray, block: int = 512) -> dict[str, PairSums]:
    """Cosines of every first half with the second half of all videos of other source groups.

    units: i64 [N], the bootstrap unit of each video. Returns one table per relation:
    "different_video" has every pair, "same_class" and "different_class" those of them whose labels
    are both known. Computed in blocks of videos, so that no N x N matrix is held.
    """
    order = np.argsort(units, kind="stable")
    features, units = features.select(order), units[order]
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    first, second = half_embeddings(features.view_embeddings)
    labels, groups = features.labels, features.groups
    shape = (len(starts), len(starts))
    tables = {name: PairSums(np.zeros(shape), np.zeros(shape)) for name in RELATIONS}
    for start in range(0, len(units), block):
        rows = slice(start, start + block)
        cosines = (first[rows] @ second.T).astype(np.float64)
        other_group = groups[rows, None] != groups[None]
        known = other_group & (labels[rows, None] != "") & (labels[None] != "")
        same_class = labels[rows, None] == labels[None]
        masks = (other_group, known & same_class, known & ~same_class)
        for name, mask in zip(RELATIONS, masks, strict=True):
            tables[name].add(cosines, mask, units[rows], starts)
    return tables


def stability(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Cosines within and between test videos, and the stability margin, their difference."""
    test = features.subset("test")
    n, views = test.view_embeddings.shape[:2]
    bootstrap = Bootstrap(test.groups, cfg.bootstrap_resamples, cfg.seed)
    first, second = half_embeddings(test.view_embeddings)
    same_video = (first * second).sum(axis=1)
    consecutive = consecutive_view_cosine(test.view_embeddings)
    halves = f"first {views // 2} vs last {views // 2} of {views} views, test"
    within = {
        "same_video_cosine": (same_video, halves),
        "consecutive_view_cosine": (consecutive, "consecutive views, test"),
    }
    results = [
        bootstrap.result(metric, bootstrap.mean(cosines), n, protocol, std=float(cosines.std()))
        for metric, (cosines, protocol) in within.items()
    ]
    pairs = pair_cosines(test, bootstrap.units)
    samples = {name: bootstrap.pair_mean(table.sums, table.counts) for name, table in pairs.items()}
    protocol = f"{halves}, different source groups, n counts ordered pairs"
    for name, table in pairs.items():
        if name == "different_video" or (test.labels != "").any():
            note = None if table.n else "no such pair among the test videos"
            metric = f"{name}_cosine"
            results.append(
                bootstrap.result(metric, samples[name], table.n, protocol, note, table.std)
            )
    margin = bootstrap.mean(same_video) - samples["different_video"]
    protocol = f"same-video minus different-video cosine, {halves}"
    return [*results, bootstrap.result("stability_margin", margin, n, protocol)]


def collapse(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Effective rank (RankMe) and std per dimension of the test embeddings."""
    test = features.subset("test")
    embeddings = torch.from_numpy(test.embeddings)

    def measure(metric: str, statistic: Callable[[Tensor], Tensor], protocol: str) -> Result:
        def on_subset(mask: np.ndarray) -> float:
            return float(statistic(embeddings[mask]))

        return jackknife(metric, on_subset, test.groups, protocol)

    bounds = f"between 1 and {min(embeddings.shape)}"
    std_protocol = "std per dimension of unit-norm embeddings, times sqrt(D), test"
    return [
        measure("effective_rank", effective_rank, f"RankMe, {bounds}, test"),
        measure("embedding_std", embedding_std, std_protocol),
    ]
