"""The table and the verdict: what they mark and claim, and what they do not."""

import pytest

from mofore.evaluation import table


def result(encoder, metric, value, low=None, high=None, protocol="p", note=None, n=10):
    return dict(
        encoder=encoder,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=n,
        protocol=protocol,
        note=note,
    )


@pytest.mark.parametrize(
    ("trained", "kind", "words"),
    [
        ((0.5, 0.45, 0.55), "better", "above untrained beyond"),
        ((0.35, 0.25, 0.45), "unclear", "No difference from untrained can be claimed"),
        ((0.1, 0.05, 0.15), "worse", "BELOW"),
    ],
)
def test_the_verdict_claims_only_what_the_intervals_allow(trained, kind, words):
    results = [
        result("trained", "knn_accuracy", *trained),
        result("untrained", "knn_accuracy", 0.3, 0.2, 0.4),
    ]
    verdict = table.verdict(results)
    assert verdict.kind == kind
    assert words in verdict.lines[0]


def test_beating_untrained_is_no_victory_below_the_pixels():
    results = [
        result("trained", "retrieval_r1", 0.5, 0.45, 0.55),
        result("untrained", "retrieval_r1", 0.3, 0.2, 0.4),
        result("pixels", "retrieval_r1", 0.6, 0.56, 0.64),
    ]
    verdict = table.verdict(results)
    assert verdict.kind == "unclear"
    assert "Not above the stronger of pixels" in verdict.lines[-1]


def test_no_interval_no_claim():
    results = [result("trained", "knn_accuracy", 0.9), result("untrained", "knn_accuracy", 0.1)]
    assert "not judged" in table.verdict(results).lines[0]


def test_the_best_of_a_row_is_marked_where_one_direction_is_better():
    results = [
        result("trained", "forecast_relative", 0.8),
        result("untrained", "forecast_relative", 0.9),
        result("trained", "same_video_cosine", 0.9),
        result("untrained", "same_video_cosine", 0.99),
        result("trained", "retrieval_r50", 1.0),
        result("untrained", "retrieval_r50", 1.0),
        result("trained", "a_new_number", 1.0),
        result("pixels", "a_new_number", None, note="not for pixels"),
    ]
    laid = table.table(results)
    best = {
        row.label: [cell.best for cell in row.cells]
        for rows in laid.groups.values()
        for row in rows
    }
    assert best["forecast / persistence"] == [True, False, False]
    assert best["same-video cosine"] == best["R@50"] == best["a new number"] == [False] * 3
    assert "pixels: not for pixels" in laid.footnotes
    assert laid.groups["Other"][0].cells[2].value is None


def test_one_metric_under_two_protocols_is_two_rows():
    results = [
        result("trained", "retrieval_r1", v, protocol=p)
        for v, p in ((0.5, "all"), (0.4, "other groups"))
    ]
    labels = [row.label for row in table.table(results).groups["Retrieval"]]
    assert labels == ["R@1 (all)", "R@1 (other groups)"]


def test_collapse_is_named():
    assert table.collapse_warning(60.0, 0.9, 192) is None
    assert "effective rank 1.20 of 192" in str(table.collapse_warning(1.2, 0.9, 192))
    assert "deviation 0.010" in str(table.collapse_warning(None, 0.01, None))
