from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mofore.evaluation.recognition import (
    C_VALUES,
    _fit,
    knn,
    linear_probe,
    select_c,
    weighted_knn,
)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (500, 0.07)])
def test_weighted_knn_matches_scikit_learn(make_features, k, temperature):
    features = make_features(separation=0.3)
    train, test = features.subset("train"), features.subset("test")
    k_all = min(k, len(train.labels))
    expected = KNeighborsClassifier(
        k_all, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.embeddings, train.labels)
    actual = weighted_knn(train.embeddings, train.labels, test.embeddings, k, temperature)
    np.testing.assert_array_equal(actual, expected.predict(test.embeddings))
    assert 0.3 < (actual == test.labels).mean() < 1 or k == 1


def test_a_low_temperature_gives_the_nearest_neighbour(make_features):
    features = make_features(separation=0.3)
    train, test = features.subset("train"), features.subset("test")
    sharp = weighted_knn(train.embeddings, train.labels, test.embeddings, 20, 1e-5)
    first = weighted_knn(train.embeddings, train.labels, test.embeddings, 1, 0.07)
    np.testing.assert_array_equal(sharp, first)


@pytest.mark.parametrize("evaluator", [knn, linear_probe])
def test_separated_classes_are_recognised_and_noise_is_chance(make_features, cfg, evaluator):
    separated: Any
    noise: Any
    [separated] = evaluator(make_features(separation=3.0), cfg)
    [noise] = evaluator(make_features(separation=0.0, groups=12), cfg)
    assert separated.value == 1.0
    assert noise.low < 0.25 < noise.high
    assert separated.n == 4 * 2 * 3
    assert noise.low < noise.value < noise.high


def test_the_protocol_names_k_and_temperature(make_features, cfg):
    assert knn(make_features(), cfg)[0].protocol == "kNN, k=20, temperature 0.07"
    cfg.knn_k = 1000
    assert "k=48 (all of train)" in knn(make_features(), cfg)[0].protocol


def test_the_probe_in_many_dimensions_matches_the_probe_without_pca(make_features):
    features = make_features(dim=300, separation=0.2)
    train, test = features.subset("train"), features.subset("test")
    assert train.view_embeddings.shape[2] > len(train.labels)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, tol=1e-8))
    plain.fit(train.embeddings, train.labels)
    actual = _fit(train.embeddings, train.labels, 0.1)
    expected = plain.decision_function(test.embeddings)
    np.testing.assert_allclose(
        actual.decision_function(test.embeddings), expected, atol=0.02 * np.abs(expected).max()
    )


def test_c_is_selected_without_the_test_split(make_features, cfg):
    features = make_features(separation=0.5)
    [before] = linear_probe(features, cfg)
    features.view_embeddings[features.splits == "test"] = 0
    [after] = linear_probe(features, cfg)
    assert before.protocol == after.protocol
    assert any(f"C={c:g}" in before.protocol for c in C_VALUES)


def test_c_is_selected_on_held_out_groups(make_features):
    """Each group has its own marker feature, which helps only within the group.

    Held-out groups reject it with a smaller C; held-out videos of seen groups would trust it.
    """
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    labels = np.where(groups % 2, "a", "b")
    marker = 5.0 * np.eye(40)[groups]
    weak = (labels == "a")[:, None] * 0.7 + rng.normal(size=(320, 10))
    train = np.concatenate([marker, weak], axis=1).astype(np.float32)
    across = select_c(train, labels, groups.astype(str))
    within = select_c(train, labels, np.arange(320).astype(str))
    assert across is not None
    assert within is not None
    assert across < within


def test_one_group_is_too_few_to_select_c(make_features, cfg):
    features = make_features()
    features.groups[features.splits == "train"] = "all one"
    [result] = linear_probe(features, cfg)
    assert "too few groups" in result.protocol
    assert result.value is not None


@pytest.mark.parametrize("evaluator", [knn, linear_probe])
def test_a_class_without_train_videos_counts_as_wrong_and_is_noted(make_features, cfg, evaluator):
    features = make_features(separation=3.0)
    features.labels[(features.splits == "test") & (features.labels == "class 0")] = "unseen"
    [result] = evaluator(features, cfg)
    assert result.value == 0.75
    assert "unseen" in result.note
    assert "6 test videos count as wrong" in result.note


@pytest.mark.parametrize("evaluator", [knn, linear_probe])
def test_a_single_class_has_no_accuracy(make_features, cfg, evaluator):
    [result] = evaluator(make_features(classes=1), cfg)
    assert result.value is None
    assert "only one class" in result.note


def test_videos_without_a_label_are_left_out(make_features, cfg):
    features = make_features(separation=3.0)
    features.labels[::5] = ""
    [result] = knn(features, cfg)
    assert result.value == 1.0
    assert result.n == ((features.splits == "test") & (features.labels != "")).sum()
