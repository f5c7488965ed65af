"""Scores of a frozen encoder on a video cache: (value, low, high), 95% intervals over groups.

knn, retrieval, linear probe   as `mofore evaluate` computes them
clip_order_accuracy            which of two neighbouring clips of a video is the later one: a linear
                               probe on the difference of their embeddings; chance is 50%
skill, r2                      of the forecast of the teacher's latents at each gap: 1 - its error
                               relative to persistence ("as now"), and to the latents' mean, hence
                               the share of their variance that the forecast explains
effective_rank                 of the embeddings (RankMe, Garrido et al. 2023)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.video_cache import VideoCache, evaluation_clips
from mofore.collapse import effective_rank
from mofore.config import PretrainConfig
from mofore.data.dataset import collate, draw_sample
from mofore.data.windows import GapConfig, GapDistribution
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.extraction import NO_AUGMENTATION
from mofore.evaluation.features import Features, nearest_neighbours
from mofore.evaluation.forecasting import forecast_errors
from mofore.evaluation.intervals import Bootstrap, Result, ratio
from mofore.evaluation.recognition import fit_probe, knn, linear_probe, weighted_knn
from mofore.evaluation.retrieval import retrieval
from mofore.models.objective import Pretraining
from mofore.types import Batch

VIEWS, GAPS, BATCH = 4, 4, 32
Interval = tuple[float, float, float]


@torch.inference_mode()
def extract_features(
    encode: Callable[[Tensor], Tensor], cache: VideoCache, config: PretrainConfig, *splits: str
) -> Features:
    """Features of the train split and of `splits`. encode: u8 [V, C, T, H, W] -> [V, D]."""
    rows = np.concatenate([cache.rows(split) for split in ("train", *splits)])
    clips = (evaluation_clips(cache, row, config.data, VIEWS) for row in rows)
    embeddings = np.stack([encode(views).float().numpy() for views in clips])
    names = rows.astype(str)
    return Features(embeddings, cache.labels[rows], cache.groups[rows], cache.splits[rows], names)


def as_test_split(features: Features, split: str) -> Features:
    """The train split and `split` alone, renamed to "test", the name that evaluators read."""
    selected = features.select(np.isin(features.splits, ("train", split)))
    return replace(selected, splits=np.where(selected.splits == "train", "train", "test"))


def knn_scores(features: Features) -> dict[str, Interval]:
    """kNN alone, for the learning curves."""
    return {each.metric: to_interval(each) for each in knn(features, EvaluateConfig(run="none"))}


def all_scores(features: Features) -> dict[str, Interval]:
    """Every score of an encoder except those of its forecasts."""
    results = [
        result
        for evaluator in (knn, linear_probe, retrieval)
        for result in evaluator(features, EvaluateConfig(run="none"))
    ]
    rank = float(effective_rank(torch.from_numpy(features.subset("test").embeddings)))
    scores = {each.metric: to_interval(each) for each in results if each.value is not None}
    order = clip_order_accuracy(features)
    return scores | {"clip_order_accuracy": order, "effective_rank": (rank, rank, rank)}


def correct_by_group(features: Features) -> dict[str, list[int]]:
    """Videos and correct predictions of each test group, by metric, in the order of the groups.

    With these, two recipes can be compared on the same groups.
    """
    train, test, config = features.subset("train"), features.subset("test"), EvaluateConfig("none")
    k = min(config.knn_k, len(train.labels))
    nearest = nearest_neighbours(test.embeddings, train.embeddings, 1)[1][:, 0]
    predicted = {
        "knn_accuracy": weighted_knn(
            train.embeddings, train.labels, test.embeddings, k, config.knn_temperature
        ),
        "retrieval_r1": train.labels[nearest],
        "linear_probe_accuracy": fit_probe(train)[0].predict(test.embeddings),
    }
    units = np.unique(test.groups, return_inverse=True)[1]
    counts = {"videos": np.bincount(units).tolist()}
    for metric, labels in predicted.items():
        counts[metric] = np.bincount(units, labels == test.labels).astype(int).tolist()
    return counts


def to_interval(result: Result) -> Interval:
    """(value, low, high) of a result that has all three."""
    return result.value, result.low, result.high  # type: ignore[return-value]


def clip_order_accuracy(features: Features) -> Interval:
    """Each pair is shown in both orders, so the probe has no intercept and chance is one half."""
    differences = {
        split: np.diff(features.subset(split).view_embeddings, axis=1)  # [N, V - 1, D]
        for split in ("train", "test")
    }
    train = differences["train"].reshape(-1, differences["train"].shape[-1])
    scale = train.std(axis=0) + 1e-6
    probe = LogisticRegression(fit_intercept=False, max_iter=1000)
    probe.fit(np.concatenate([train, -train]) / scale, np.repeat([1, 0], len(train)))
    test = (differences["test"] / scale).reshape(-1, len(scale))
    correct = (probe.decision_function(test) > 0).reshape(-1, VIEWS - 1)
    bootstrap = Bootstrap(features.subset("test").groups, 1000, 0)
    mean = bootstrap.mean(correct.mean(axis=1))
    return to_interval(bootstrap.result("clip_order_accuracy", mean, len(correct), ""))


def forecast_scores(
    model: Pretraining, cache: VideoCache, config: PretrainConfig, split: str
) -> dict[str, Interval]:
    """Skill and R2 of the forecasts, at gaps from the smallest to the largest of the training."""
    rows, scores = cache.rows(split), {}
    bootstrap = Bootstrap(cache.groups[rows], 1000, 0)
    for gap in np.linspace(config.data.gap.min, config.data.gap.max, GAPS):
        batches = _batches_at_gap(cache, rows, config, float(gap))
        device = torch.device("cpu")
        errors = forecast_errors({"": model}, batches, len(cache.labels), 1, device)[""]
        errors = errors.select(rows)
        forecast = bootstrap.mean(errors.forecast[:, 0])
        for name, baseline in (("skill", errors.persistence), ("r2", errors.mean_latent)):
            score = 1 - ratio(forecast, bootstrap.mean(baseline[:, 0]))
            result = bootstrap.result(name, score, len(rows), "")
            scores[f"{name}_{gap:.2f}s"] = to_interval(result)
    return scores


def _batches_at_gap(
    cache: VideoCache, rows: np.ndarray, config: PretrainConfig, gap: float
) -> list[Batch]:
    """One sample of each video, with one target at this gap (seconds), not augmented."""
    data = replace(
        config.data,
        gap=GapConfig(GapDistribution.fixed, 0, gap),
        targets=1,
        token_keep_ratio=1,
        augment=NO_AUGMENTATION,
    )
    samples = [
        draw_sample(
            np.random.default_rng(int(row)),
            cache.timeline(row),
            partial(cache.read, row),
            int(row),
            data,
            config.tokens,
        )
        for row in rows
    ]
    firsts = range(0, len(samples), BATCH)
    return [collate(samples[first : first + BATCH]).batch for first in firsts]
