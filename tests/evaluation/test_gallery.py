"""The gallery: which videos are shown, before any is decoded."""

import numpy as np
import pytest

from mofore.evaluation.gallery import Embedded, choose_queries, neighbours


def test_queries_follow_a_rule_that_knows_no_outcome():
    labels = np.array(list("abcabcabc"))
    parts = np.array(["train"] * 3 + ["test"] * 6)
    embedded = Embedded(np.eye(9), np.arange(9), labels, labels, labels, parts)
    chosen, _ = choose_queries(embedded, 4)
    assert chosen.tolist() == [
        3,
        6,
        4,
        5,
    ]  # the first test video of each class, then the second of the first class
    assert choose_queries(embedded, 2)[0].tolist() == [3, 5]


def test_neighbours_come_from_train_or_else_from_other_groups():
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.2]], np.float32)
    labels, groups = np.array(["a"] * 4), np.array(["g", "g", "h", "i"])
    split = Embedded(
        vectors, np.arange(4), labels, labels, groups, np.array(["test", "train", "train", ""])
    )
    assert [row for row, _ in neighbours(split, 0)] == [1, 2]
    whole = Embedded(vectors, np.arange(4), labels, labels, groups, np.array([""] * 4))
    found = neighbours(whole, 0)
    assert [row for row, _ in found] == [3, 2]
    assert found[0][1] == pytest.approx(1 / np.sqrt(1.04))
