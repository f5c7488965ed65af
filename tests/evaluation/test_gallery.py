"""The gallery: which videos are shown."""

import numpy as np
import pytest

from mofore.evaluation.features import Features
from mofore.evaluation.gallery import choose_queries, neighbours


def make_features(vectors, labels, groups, splits) -> Features:
    vectors = np.asarray(vectors, np.float32)
    names = np.array([f"{i}.mp4" for i in range(len(vectors))])
    return Features(vectors[:, None], np.array(labels), np.array(groups), np.array(splits), names)


def test_queries_are_chosen_by_class_and_order_in_the_manifest():
    labels = list("abcabcabc")
    features = make_features(np.eye(9), labels, labels, ["train"] * 3 + ["test"] * 6)
    chosen, _ = choose_queries(features, 4)
    # The first test video of each class, and the second of the first class.
    assert chosen.tolist() == [3, 6, 4, 5]
    assert choose_queries(features, 2)[0].tolist() == [3, 5]


def test_neighbours_are_from_train_or_else_from_other_groups():
    vectors = [[1, 0], [1, 0.1], [0, 1], [1, 0.2]]
    labels, groups = ["a"] * 4, ["g", "g", "h", "i"]
    split = make_features(vectors, labels, groups, ["test", "train", "train", ""])
    assert [row for row, _ in neighbours(split, 0)] == [1, 2]
    whole = make_features(vectors, labels, groups, [""] * 4)
    found = neighbours(whole, 0)
    assert [row for row, _ in found] == [3, 2]
    assert found[0][1] == pytest.approx(1 / np.sqrt(1.04))
