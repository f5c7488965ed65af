"""Charts and the map of the embeddings: what they show, and that they are deterministic."""

import numpy as np
import pytest

from mofore.evaluation import embedding_map
from mofore.evaluation.charts import bin_edges, histogram, training_curves


def test_classes_have_distinct_markers_and_beyond_48_the_rarest_are_grey():
    labels = [f"class {i:03d}" for i in range(48)]
    legend = embedding_map.build_legend(labels)
    assert len({(entry.colour, entry.points) for entry in legend}) == 48
    many = embedding_map.build_legend([f"class {i:03d}" for i in range(101)])
    assert many[-1].label == "53 other classes"
    assert sum(entry.count for entry in many) == 101


def test_the_map_is_deterministic_and_names_its_method():
    vectors = np.random.default_rng(0).normal(size=(70, 12)).astype(np.float32)
    first, method = embedding_map.project(vectors)
    assert "t-SNE" in method
    np.testing.assert_array_equal(first, embedding_map.project(vectors)[0])
    assert embedding_map.project(vectors[:20])[1] == "PCA"
    assert embedding_map.project(vectors[:20, :1])[0].shape == (20, 2)
    assert len(embedding_map.mapped_rows(10**5)) == embedding_map.MAX_MAPPED


def test_curves_leave_out_metrics_that_are_not_logged_or_not_finite():
    lines = [{"step": i, "loss": 1.0 / i, "grad_norm": float("nan")} for i in range(1, 5000)]
    pictures = training_curves(lines)
    assert [picture.title for picture in pictures] == ["Loss"]
    assert "from 1 to 0.0002" in pictures[0].alt
    assert len(pictures[0].uri) < 100_000
    assert training_curves([{"step": 1, "loss": 1.0}])[0].alt.startswith("Loss, steps 1 to 1")


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ([3, 1, 2, 2], False),
        ([5], False),
        ([0, 7], False),
        ([0, 1000], False),
        ([0.1, 3, 10.01], True),
        ([1e-3, 7, 1e5 / 3], True),
    ],
)
def test_a_histogram_counts_every_value(values, log):
    array = np.array(values)
    edges, is_log = bin_edges(array)
    assert is_log == log
    assert np.histogram(array, edges)[0].sum() == len(values)
    widths = np.diff(np.log(edges) if log else edges)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-6)
    chart = histogram("Durations", array, "seconds")
    assert chart.alt.startswith(f"Durations in seconds: {min(values):.4g} to {max(values):.4g}, ")
