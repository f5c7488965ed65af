"""What an encoder has learned of footage: (value, low, high) by metric, with 95% intervals over textures.

knn, retrieval, linear probe   as `mofore evaluate` measures them, on the part asked for
time_sense                     which of two neighbouring clips of a video is the later: a linear probe on the difference
                               of their embeddings, 50% by chance
skill, r2                      of the forecast of the teacher's latents at each gap: 1 - its error / that of "as now", and
                               / that of the latents' mean, so what share of their variance it explains
effective_rank                 of the embeddings (Garrido et al. 2023, RankMe)
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks import footage as videos
from benchmarks.footage import Footage
from evaluation.evaluate import PLAIN_VIEWS
from evaluation.features import Features, nearest
from evaluation.forecasting import forecast_errors
from evaluation.intervals import Bootstrap, ratio
from evaluation.recognition import fit_probe, knn, linear_probe, weighted_knn
from evaluation.retrieval import retrieval
from mofore.collapse import effective_rank
from mofore.config import EvaluateConfig, PretrainConfig
from mofore.data.dataset import collate, draw_sample
from mofore.data.windows import GapConfig, GapLaw
from mofore.pretraining import Pretraining

VIEWS, GAPS = 4, 4
Interval = tuple[float, float, float]


@torch.inference_mode()
def features(
    encode: Callable[[Tensor], Tensor], footage: Footage, config: PretrainConfig, *parts: str
) -> Features:
    """Of train and of these parts."""
    rows = np.concatenate([footage.rows(part) for part in ("train", *parts)])
    clips = [encode(videos.views(footage, row, config.data, VIEWS)).float().numpy() for row in rows]
    return Features(np.stack(clips), footage.labels[rows], footage.groups[rows], footage.parts[rows])


def against(found: Features, part: str) -> Features:
    """Train and one part, which is called test for the evaluators."""
    both = found.select(np.isin(found.parts, ("train", part)))
    return replace(both, parts=np.where(both.parts == "train", "train", "test"))


def recognised(found: Features) -> dict[str, Interval]:
    """kNN alone: what the curves are made of."""
    return {each.metric: interval(each) for each in knn(found, EvaluateConfig(run="none"))}


def measure(found: Features) -> dict[str, Interval]:
    results = [
        each for ask in (knn, linear_probe, retrieval) for each in ask(found, EvaluateConfig(run="none"))
    ]
    rank = float(effective_rank(torch.from_numpy(found.part("test").embeddings)))
    scores = {each.metric: interval(each) for each in results if each.value is not None}
    return scores | {"time_sense": time_sense(found), "effective_rank": (rank, rank, rank)}


def right_by_group(found: Features) -> dict[str, list[int]]:
    """How many videos each group has and how many of them are right, by metric, in the order of the groups' names: for
    differences between recipes on the same groups.
    """
    train, test, ask = found.part("train"), found.part("test"), EvaluateConfig(run="none")
    k = min(ask.k, len(train.labels))
    predicted = {
        "knn_accuracy": weighted_knn(train.embeddings, train.labels, test.embeddings, k, ask.temperature),
        "retrieval_r1": train.labels[nearest(test.embeddings, train.embeddings, 1)[1][:, 0]],
        "linear_probe_accuracy": fit_probe(train)[0].predict(test.embeddings),
    }
    units = np.unique(test.groups, return_inverse=True)[1]
    right = {metric: np.bincount(units, guess == test.labels) for metric, guess in predicted.items()}
    return {"videos": np.bincount(units).tolist()} | {
        metric: count.astype(int).tolist() for metric, count in right.items()
    }


def interval(result) -> Interval:
    return result.value, result.low, result.high


def time_sense(found: Features) -> Interval:
    """Each pair is seen in both orders, so the probe needs no constant and chance is a half."""
    steps = {name: np.diff(found.part(name).clips, axis=1) for name in ("train", "test")}  # [N, V - 1, D]
    train = steps["train"].reshape(-1, steps["train"].shape[-1])
    scale = train.std(axis=0) + 1e-6
    probe = LogisticRegression(fit_intercept=False, max_iter=1000)
    probe.fit(np.concatenate([train, -train]) / scale, np.repeat([1, 0], len(train)))
    right = (probe.decision_function((steps["test"] / scale).reshape(-1, len(scale))) > 0).reshape(
        -1, VIEWS - 1
    )
    bootstrap = Bootstrap(found.part("test").groups, 1000, 0)
    return interval(bootstrap.result("time_sense", bootstrap.mean(right.mean(axis=1)), len(right), ""))


def skill(model: Pretraining, footage: Footage, config: PretrainConfig, part: str) -> dict[str, Interval]:
    """At gaps from the smallest to the largest of the training."""
    rows, found = footage.rows(part), {}
    bootstrap = Bootstrap(footage.groups[rows], 1000, 0)
    for gap in np.linspace(config.data.gap.min, config.data.gap.max, GAPS):
        data = replace(
            config.data, gap=GapConfig(GapLaw.fixed, 0, float(gap)), targets=1, keep=1, augment=PLAIN_VIEWS
        )
        samples = [
            draw_sample(np.random.default_rng(int(row)), footage.times[row], footage.durations[row],
                        footage.frames[row].__getitem__, int(row), data, config.tokens)
            for row in rows
        ]  # fmt: skip
        batches = [collate(samples[first : first + 32]) for first in range(0, len(samples), 32)]
        errors = forecast_errors({"": model}, batches, len(footage.labels), 1, torch.device("cpu"))[
            ""
        ].select(rows)
        forecast = bootstrap.mean(errors.forecast[:, 0])
        for name, baseline in (("skill", errors.persistence), ("r2", errors.mean_latent)):
            score = 1 - ratio(forecast, bootstrap.mean(baseline[:, 0]))
            found[f"{name}_{gap:.2f}s"] = interval(bootstrap.result(name, score, len(rows), ""))
    return found
