from typing import Any

import numpy as np
import pytest

from mofore.evaluation.features import l2_normalise, nearest_neighbours
from mofore.evaluation.retrieval import TOP_K, retrieval


def recalls(features, cfg) -> list[Any]:
    return list(retrieval(features, cfg))


def test_nearest_neighbours_match_brute_force_across_blocks():
    rng = np.random.default_rng(0)
    queries, bank = (
        rng.normal(size=(23, 8)).astype(np.float32),
        rng.normal(size=(40, 8)).astype(np.float32),
    )
    cosine, rows = nearest_neighbours(queries, bank, 7, block=5)
    for i, query in enumerate(queries):
        every = np.array(
            [query @ other / np.linalg.norm(query) / np.linalg.norm(other) for other in bank]
        )
        np.testing.assert_array_equal(rows[i], np.argsort(-every)[:7])
        np.testing.assert_allclose(cosine[i], np.sort(every)[::-1][:7], rtol=1e-4)


def test_a_zero_vector_stays_zero():
    assert not l2_normalise(np.zeros((2, 3), dtype=np.float32)).any()


def test_recall_matches_brute_force_and_never_decreases_with_k(make_features, cfg):
    features = make_features(separation=0.2, groups=9, noise=0.6)
    results = recalls(features, cfg)
    train, test = features.subset("train"), features.subset("test")
    similarity = l2_normalise(test.embeddings) @ l2_normalise(train.embeddings).T
    for k, result in zip(TOP_K, results, strict=True):
        hits = [
            label in train.labels[np.argsort(-row)[:k]]
            for label, row in zip(test.labels, similarity, strict=True)
        ]
        assert result.metric == f"retrieval_r{k}"
        assert result.value == pytest.approx(np.mean(hits))
        assert result.low <= result.value <= result.high
    values = [result.value for result in results]
    assert values == sorted(values)
    assert values[0] < values[-1]


def test_no_recall_if_train_is_smaller_than_k(make_features, cfg):
    results = {result.metric: result for result in recalls(make_features(groups=3), cfg)}
    assert results["retrieval_r20"].value is not None
    assert results["retrieval_r50"].value is None
    assert "only 24 videos" in results["retrieval_r50"].note


def test_shared_source_groups_inflate_recall(make_features, cfg):
    """So a split with shared groups has another name."""
    features = make_features(separation=0.0, noise=0.03, groups=9)
    separate = recalls(features, cfg)[0]
    features.splits[:] = np.where(
        np.arange(len(features.splits)) % 3 == 0, "test", "train"
    )  # one of each group
    shared = recalls(features, cfg)[0]
    assert separate.value < 0.6
    assert shared.value > 0.9
