"""The table of results: its rows, and which values it marks as best."""

from mofore.evaluation.results_table import build_table
from tests.evaluation.results import result


def test_the_best_of_a_row_is_marked_if_the_metric_has_a_direction():
    results = [
        result("trained", "forecast_relative_mse", 0.8),
        result("untrained", "forecast_relative_mse", 0.9),
        result("trained", "same_video_cosine", 0.9),
        result("untrained", "same_video_cosine", 0.99),
        result("trained", "retrieval_r50", 1.0),
        result("untrained", "retrieval_r50", 1.0),
        result("trained", "a_new_number", 1.0),
        result("pixels", "a_new_number", None, note="not for pixels"),
    ]
    table = build_table(results)
    best = {
        row.label: [cell.best for cell in row.cells]
        for rows in table.groups.values()
        for row in rows
    }
    assert best["forecast / persistence MSE"] == [True, False, False]
    assert best["same-video cosine"] == best["R@50"] == best["a new number"] == [False] * 3
    assert "pixels: not for pixels" in table.footnotes
    assert table.groups["Other"][0].cells[2].value is None


def test_a_metric_with_two_protocols_has_two_rows():
    results = [
        result("trained", "retrieval_r1", v, protocol=p)
        for v, p in ((0.5, "all"), (0.4, "other groups"))
    ]
    labels = [row.label for row in build_table(results).groups["Retrieval"]]
    assert labels == ["R@1 (all)", "R@1 (other groups)"]
