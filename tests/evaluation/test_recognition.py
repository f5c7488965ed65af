from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mofore.evaluation.recognition import (
    STRENGTHS,
    _fit,
    choose_strength,
    knn,
    linear_probe,
    weighted_knn,
)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (500, 0.07)])
def test_weighted_knn_is_scikit_learns_with_the_same_weights(make_features, k, temperature):
    features = make_features(separation=0.3)
    train, test = features.part("train"), features.part("test")
    k_all = min(k, len(train.labels))
    theirs = KNeighborsClassifier(
        k_all, metric="cosine", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(train.embeddings, train.labels)
    ours = weighted_knn(train.embeddings, train.labels, test.embeddings, k, temperature)
    np.testing.assert_array_equal(ours, theirs.predict(test.embeddings))
    assert 0.3 < (ours == test.labels).mean() < 1 or k == 1


def test_a_sharp_temperature_is_the_nearest_neighbour(make_features):
    features = make_features(separation=0.3)
    train, test = features.part("train"), features.part("test")
    sharp = weighted_knn(train.embeddings, train.labels, test.embeddings, 20, 1e-5)
    first = weighted_knn(train.embeddings, train.labels, test.embeddings, 1, 0.07)
    np.testing.assert_array_equal(sharp, first)


@pytest.mark.parametrize("evaluator", [knn, linear_probe])
def test_apart_is_told_apart_and_noise_is_chance(make_features, cfg, evaluator):
    apart: Any
    noise: Any
    [apart] = evaluator(make_features(separation=3.0), cfg)
    [noise] = evaluator(make_features(separation=0.0, groups=12), cfg)
    assert apart.value == 1.0
    assert noise.low < 0.25 < noise.high
    assert apart.n == 4 * 2 * 3
    assert noise.low < noise.value < noise.high


def test_the_protocol_names_k_and_temperature(make_features, cfg):
    assert knn(make_features(), cfg)[0].protocol == "knn k=20 tau=0.07"
    cfg.knn_k = 1000
    assert "k=48 (all of train)" in knn(make_features(), cfg)[0].protocol


def test_the_probe_in_many_dimensions_is_the_plain_one(make_features):
    """Rotating into the span of the rows changes nothing but the time."""
    features = make_features(dim=300, separation=0.2)
    train, test = features.part("train"), features.part("test")
    assert train.clips.shape[2] > len(train.labels)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, tol=1e-8))
    plain.fit(train.embeddings, train.labels)
    ours = _fit(train.embeddings, train.labels, 0.1)
    theirs = plain.decision_function(test.embeddings)
    np.testing.assert_allclose(
        ours.decision_function(test.embeddings), theirs, atol=0.02 * np.abs(theirs).max()
    )


def test_the_strength_is_chosen_without_the_test_part(make_features, cfg):
    features = make_features(separation=0.5)
    [before] = linear_probe(features, cfg)
    features.clips[features.parts == "test"] = 0
    [after] = linear_probe(features, cfg)
    assert before.protocol == after.protocol
    assert any(f"C={strength:g}" in before.protocol for strength in STRENGTHS)


def test_the_strength_is_chosen_on_other_groups(make_features):
    """Each group has a marker of its own. Who validates on seen groups trusts it; across groups it says nothing."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    labels = np.where(groups % 2, "a", "b")
    marker = 5.0 * np.eye(40)[groups]
    weak = (labels == "a")[:, None] * 0.7 + rng.normal(size=(320, 10))
    train = np.concatenate([marker, weak], axis=1).astype(np.float32)
    across = choose_strength(train, labels, groups.astype(str))
    within = choose_strength(train, labels, np.arange(320).astype(str))
    assert across is not None
    assert within is not None
    assert across < within


def test_one_group_leaves_nothing_to_choose_on(make_features, cfg):
    features = make_features()
    features.groups[features.parts == "train"] = "all one"
    [result] = linear_probe(features, cfg)
    assert "too few groups" in result.protocol
    assert result.value is not None


@pytest.mark.parametrize("evaluator", [knn, linear_probe])
def test_a_class_that_train_lacks_counts_as_wrong_and_is_told(make_features, cfg, evaluator):
    features = make_features(separation=3.0)
    features.labels[(features.parts == "test") & (features.labels == "class 0")] = "unseen"
    [result] = evaluator(features, cfg)
    assert result.value == 0.75
    assert "unseen" in result.note
    assert "6 test videos count as wrong" in result.note


@pytest.mark.parametrize("evaluator", [knn, linear_probe])
def test_a_single_class_gives_no_number(make_features, cfg, evaluator):
    [result] = evaluator(make_features(classes=1), cfg)
    assert result.value is None
    assert "one class only" in result.note


def test_videos_without_a_label_take_no_part(make_features, cfg):
    features = make_features(separation=3.0)
    features.labels[::5] = ""
    [result] = knn(features, cfg)
    assert result.value == 1.0
    assert result.n == ((features.parts == "test") & (features.labels != "")).sum()
