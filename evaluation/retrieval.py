"""Features in, out how often a test video finds its class among its nearest train videos.

R@k: the share of test videos with at least one video of their class among their k nearest train videos, by
cosine (Xu et al., "Video Clip Order Prediction", CVPR 2019, section 4.4).
"""

import numpy as np

from evaluation.features import Features, labelled, nearest
from evaluation.intervals import Bootstrap, Result, missing
from mofore.config import EvaluateConfig

DEPTHS = (1, 5, 10, 20, 50)


def first_hit(neighbours: np.ndarray, train_labels: np.ndarray, test_labels: np.ndarray) -> np.ndarray:
    """The place (0 the nearest) of the first neighbour of a query's class; k where none of the k is.

    neighbours: i64 [M, k] rows of train. Returns i64 [M].
    """
    hits = train_labels[neighbours] == test_labels[:, None]
    return np.where(hits.any(axis=1), hits.argmax(axis=1), neighbours.shape[1])


def retrieval(features: Features, cfg: EvaluateConfig) -> list[Result]:
    """R@1, 5, 10, 20, 50 from test to train."""
    found = labelled(features)
    protocol = "test -> train, cosine"
    if found.problem:
        return [missing(f"retrieval_r{k}", protocol, found.problem) for k in DEPTHS]
    bank = found.train.embeddings
    _, neighbours = nearest(found.test.embeddings, bank, min(DEPTHS[-1], len(bank)))
    first = first_hit(neighbours, found.train.labels, found.test.labels)
    bootstrap = Bootstrap(found.test.groups, cfg.resamples, cfg.seed)
    results = []
    for k in DEPTHS:
        if k > len(bank):
            results.append(missing(f"retrieval_r{k}", protocol, f"train has {len(bank)} videos only"))
            continue
        # Where the k-th neighbour exists, `first < k` cannot confuse "found last" with "not found".
        samples = bootstrap.mean((first < k).astype(float))
        results.append(bootstrap.result(f"retrieval_r{k}", samples, len(first), protocol, found.note))
    return results
