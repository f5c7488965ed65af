"""Charts: what is drawn, and that the same numbers give the same picture."""

import numpy as np

from mofore.evaluation import charts


def test_a_hundred_classes_keep_their_own_marks_or_share_grey():
    labels = [f"class {i:03d}" for i in range(48)]
    legend = charts.legend_of(labels)
    assert len({(entry.colour, entry.points) for entry in legend}) == 48
    many = charts.legend_of([f"class {i:03d}" for i in range(101)])
    assert many[-1].label == "53 other classes"
    assert sum(entry.count for entry in many) == 101


def test_the_map_is_the_same_each_time_and_says_how_it_was_made():
    vectors = np.random.default_rng(0).normal(size=(70, 12)).astype(np.float32)
    first, method = charts.project(vectors)
    assert "t-SNE" in method
    np.testing.assert_array_equal(first, charts.project(vectors)[0])
    assert charts.project(vectors[:20])[1] == "PCA"
    assert charts.project(vectors[:20, :1])[0].shape == (20, 2)
    assert len(charts.mapped_rows(10**5)) == charts.MOST_MAPPED


def test_curves_leave_out_what_was_not_logged_or_is_not_finite():
    lines = [{"step": i, "loss": 1.0 / i, "grad_norm": float("nan")} for i in range(1, 5000)]
    pictures = charts.curves(lines)
    assert [picture.title for picture in pictures] == ["Loss"]
    assert "from 1 to 0.0002" in pictures[0].alt
    assert len(pictures[0].uri) < 100_000
    assert charts.curves([{"step": 1, "loss": 1.0}])[0].alt.startswith("Loss, steps 1 to 1")
