"""Features in, the published table out: how alike two times of a video are, beside how alike two videos are.

The table of MoFore (Xu, arXiv 2606.14765) for all test videos instead of one example pair. Every cosine but the
neighbours' is between the first half of a video's views and the second half of a video's views, its own or
another's, so that they differ in nothing but whose halves they are. Two videos are compared only if they
come from different source groups. A collapsed encoder scores 1.0 throughout: the effective rank and the
per-dimension deviation belong to the table.
"""

from dataclasses import dataclass

import numpy as np
import torch

from evaluation.features import Features, unit
from evaluation.intervals import Bootstrap, Result, jackknife
from mofore.collapse import effective_rank, embedding_std
from mofore.config import EvaluateConfig
from mofore.errors import UserError

RELATIONS = ("different_video", "same_class", "different_class")


def halves(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings of the first and of the last V // 2 views. clips: f32 [N, V, D]. Returns two f32 [N, D]."""
    half = clips.shape[1] // 2
    if half == 0:
        raise UserError("Stability compares times of a video: `views` must be at least 2.")
    return unit(clips[:, :half].mean(axis=1)), unit(clips[:, -half:].mean(axis=1))


def neighbour_cosine(clips: np.ndarray) -> np.ndarray:
    """Mean cosine of consecutive views of each video. clips: f32 [N, V, D]. Returns f32 [N]."""
    views = unit(clips)
    return (views[:, 1:] * views[:, :-1]).sum(axis=-1).mean(axis=1)


@dataclass(slots=True)
class Pairs:
    """Cosines of pairs of videos, summed by the units that the bootstrap draws: f64 [G, G] each."""

    sums: np.ndarray
    counts: np.ndarray
    squares: float = 0.0

    def add(self, cosine: np.ndarray, among: np.ndarray, rows: np.ndarray, starts: np.ndarray) -> None:
        """Count a block of pairs in. cosine: f64 [B, N]; among: bool [B, N] which of them count; rows: i64 [B]
        units of the block's videos; starts: i64 [G] where each unit begins among the N."""
        chosen = np.where(among, cosine, 0.0)
        np.add.at(self.sums, rows, np.add.reduceat(chosen, starts, axis=1))
        np.add.at(self.counts, rows, np.add.reduceat(among.astype(np.float64), starts, axis=1))
        self.squares += float((chosen**2).sum())

    @property
    def n(self) -> int:
        """How many ordered pairs."""
        return int(self.counts.sum())

    @property
    def spread(self) -> float | None:
        """Standard deviation over the pairs."""
        if not self.n:
            return None
        mean = self.sums.sum() / self.n
        return float(np.sqrt(max(self.squares / self.n - mean**2, 0.0)))


def pair_cosines(features: Features, units: np.ndarray, block: int = 512) -> dict[str, Pairs]:
    """Cosine of every first half with every other video's second half, source groups apart, by relation.

    units: i64 [N] the bootstrap's unit of each video. Relations: "different_video" is every pair, "same_class" and
    "different_class" those of them with both labels known. In blocks, so N x N numbers are never held.
    """
    order = np.argsort(units, kind="stable")
    features, units = features.select(order), units[order]
    starts = np.flatnonzero(np.diff(units, prepend=-1))
    first, second = halves(features.clips)
    labels, groups = features.labels, features.groups
    size = len(starts)
    tables = {name: Pairs(np.zeros((size, size)), np.zeros((size, size))) for name in RELATIONS}
    for start in range(0, len(units), block):
        rows = slice(start, start + block)
        cosine = (first[rows] @ second.T).astype(np.float64)
        apart = groups[rows, None] != groups[None]
        known = apart & (labels[rows, None] != "") & (labels[None] != "")
        alike = labels[rows, None] == labels[None]
        for name, among in zip(RELATIONS, (apart, known & alike, known & ~alike), strict=True):
            tables[name].add(cosine, among, units[rows], starts)
    return tables


def stability(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """Cosines within and between test videos, and the stability margin: same-video minus different-video."""
    test = features.part("test")
    n = len(test.groups)
    bootstrap = Bootstrap(test.groups, cfg.resamples, cfg.seed)
    first, second = halves(test.clips)
    same = (first * second).sum(axis=1)
    neighbour = neighbour_cosine(test.clips)
    half = f"first with last {test.clips.shape[1] // 2} of {test.clips.shape[1]} views, test"
    across = f"{half}, source groups apart, n pairs"
    pairs = pair_cosines(test, bootstrap.units)
    samples = {name: bootstrap.pair_mean(table.sums, table.counts) for name, table in pairs.items()}
    results = [
        bootstrap.result("same_video_cosine", bootstrap.mean(same), n, half, spread=float(same.std())),
        bootstrap.result(
            "neighbour_cosine",
            bootstrap.mean(neighbour),
            n,
            "consecutive views, test",
            spread=float(neighbour.std()),
        ),
    ]
    for name, table in pairs.items():
        if name == "different_video" or (test.labels != "").any():
            note = None if table.n else "no such pair among the test videos"
            results.append(
                bootstrap.result(f"{name}_cosine", samples[name], table.n, across, note, spread=table.spread)
            )
    margin = bootstrap.mean(same) - samples["different_video"]
    results.append(
        bootstrap.result("stability_margin", margin, n, f"same-video minus different-video, {half}")
    )
    return results


def collapse(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """RankMe and the deviation per dimension of the test videos' embeddings."""
    test = features.part("test")
    embeddings = torch.from_numpy(test.embeddings)
    bound = f"RankMe of test, between 1 and {min(embeddings.shape)}"

    def measured(metric: str, function, protocol: str) -> Result:
        return jackknife(metric, lambda mask: float(function(embeddings[mask])), test.groups, protocol)

    return [
        measured("effective_rank", effective_rank, bound),
        measured("embedding_std", embedding_std, "of unit embeddings, times sqrt(D), test"),
    ]
