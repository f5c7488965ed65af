"""Video retrieval, R@k.

R@k is the fraction of test videos with at least one video of their class among their k nearest
train videos, by cosine similarity (Xu et al., "Self-Supervised Spatiotemporal Learning via Video
Clip Order Prediction", CVPR 2019, section 4.4).
"""

import numpy as np

from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.features import Features, labelled_splits, nearest_neighbours
from mofore.evaluation.intervals import Bootstrap, Result, missing

TOP_K = (1, 5, 10, 20, 50)


def first_hit(
    neighbours: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray
) -> np.ndarray:
    """Rank (0 is nearest) of each query's first neighbour of the same class; k if there is none.

    neighbours: i64 [M, k], rows of train, nearest first. Returns i64 [M].
    """
    hits = train_labels[neighbours] == test_labels[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), neighbours.shape[1])


def retrieval(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """R@1, 5, 10, 20 and 50 with test queries and train as the gallery."""
    data = labelled_splits(features)
    protocol = "test queries, train gallery, cosine similarity"
    if data.problem:
        return [missing(f"retrieval_r{k}", protocol, data.problem) for k in TOP_K]
    gallery = data.train.embeddings
    k_max = min(TOP_K[-1], len(gallery))
    _, neighbours = nearest_neighbours(data.test.embeddings, gallery, k_max)
    first = first_hit(neighbours, data.train.labels, data.test.labels)
    bootstrap = Bootstrap(data.test.groups, cfg.bootstrap_resamples, cfg.seed)
    results = []
    for k in TOP_K:
        metric = f"retrieval_r{k}"
        if k > len(gallery):
            results.append(missing(metric, protocol, f"train has only {len(gallery)} videos"))
            continue
        # With k neighbours or more, `first < k` cannot confuse "found last" with "not found".
        samples = bootstrap.mean((first < k).astype(float))
        results.append(bootstrap.result(metric, samples, len(first), protocol, data.note))
    return results
