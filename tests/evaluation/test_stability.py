from dataclasses import replace

import numpy as np
import pytest

from mofore.evaluation.features import l2_normalise
from mofore.evaluation.stability import collapse, pair_cosines, stability


def by_metric(results):
    return {result.metric: result for result in results}


def test_identical_views_have_cosine_one(make_features, cfg):
    features = make_features()
    features = replace(
        features, view_embeddings=np.repeat(features.view_embeddings[:, :1], 4, axis=1)
    )
    found = by_metric(stability(features, cfg))
    for metric in ("same_video_cosine", "consecutive_view_cosine"):
        assert found[metric].value == pytest.approx(1, abs=1e-5)
        assert found[metric].std == pytest.approx(0, abs=1e-5)
        assert found[metric].high - found[metric].low < 1e-5


def test_pairs_match_brute_force(make_features):
    features = make_features(noise=1.0).subset("test")
    features.labels[::7] = ""
    units = np.unique(features.groups, return_inverse=True)[1]
    tables = pair_cosines(features, units, block=5)
    first = l2_normalise(features.view_embeddings[:, :2].mean(1))
    second = l2_normalise(features.view_embeddings[:, 2:].mean(1))
    pairs: dict[str, list[float]] = {name: [] for name in tables}
    for i in range(len(units)):
        for j in range(len(units)):
            if features.groups[i] == features.groups[j]:
                continue
            cosine = float(first[i] @ second[j])
            pairs["different_video"].append(cosine)
            if features.labels[i] and features.labels[j]:
                same = features.labels[i] == features.labels[j]
                pairs["same_class" if same else "different_class"].append(cosine)
    for name, table in tables.items():
        assert table.n == len(pairs[name])
        assert table.sums.sum() / table.n == pytest.approx(np.mean(pairs[name]), abs=1e-6)
        assert table.std == pytest.approx(np.std(pairs[name]), abs=1e-6)


def test_cosines_decrease_from_video_to_class_to_other_class(make_features, cfg):
    found = by_metric(stability(make_features(), cfg))
    same_video, same_class, different_class = (
        found[f"{name}_cosine"] for name in ("same_video", "same_class", "different_class")
    )
    assert same_video.value > same_class.value > different_class.value
    for result in found.values():
        assert result.low <= result.value <= result.high
    margin = same_video.value - found["different_video_cosine"].value
    assert found["stability_margin"].value == pytest.approx(margin)


def test_the_order_of_the_videos_does_not_change_the_results(make_features, cfg):
    features = make_features()
    shuffled = features.select(np.random.default_rng(0).permutation(len(features.labels)))
    for one, other in zip(stability(features, cfg), stability(shuffled, cfg), strict=True):
        assert one.value == pytest.approx(other.value)
        assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_without_labels_there_are_no_class_cosines(make_features, cfg):
    features = make_features()
    features.labels[:] = ""
    found = by_metric(stability(features, cfg))
    assert "same_class_cosine" not in found
    assert found["different_video_cosine"].value is not None


def test_a_relation_without_pairs_has_a_note(make_features, cfg):
    found = by_metric(
        stability(make_features(groups=3), cfg)
    )  # one test group a class: no same-class pair
    assert found["same_class_cosine"].value is None
    assert "no such pair" in found["same_class_cosine"].note


def test_collapse_lowers_the_rank_and_raises_the_cosines(make_features, cfg):
    features = make_features()
    collapsed = replace(
        features, view_embeddings=(features.view_embeddings * 1e-3 + 1).astype(np.float32)
    )
    assert by_metric(stability(collapsed, cfg))["same_video_cosine"].value > 0.999
    healthy, flat = (by_metric(collapse(given, cfg)) for given in (features, collapsed))
    assert flat["effective_rank"].value < 1.2 < healthy["effective_rank"].value
    assert flat["embedding_std"].value < 0.05 < healthy["embedding_std"].value
    for result in (*healthy.values(), *flat.values()):
        assert result.low <= result.value <= result.high


def test_the_bound_of_the_rank_is_in_the_protocol(make_features, cfg):
    assert (
        "between 1 and 16" in by_metric(collapse(make_features(), cfg))["effective_rank"].protocol
    )
