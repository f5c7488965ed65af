"""The verdict and the collapse warning: what they claim, and what they do not."""

import pytest

from mofore.evaluation.verdict import collapse_warning, headlines, summarise
from tests.evaluation.results import result


@pytest.mark.parametrize(
    ("trained", "kind", "words"),
    [
        ((0.5, 0.45, 0.55), "better", "significantly above untrained"),
        ((0.35, 0.25, 0.45), "unclear", "No significant difference from untrained"),
        ((0.1, 0.05, 0.15), "worse", "BELOW"),
    ],
)
def test_the_verdict_depends_on_the_overlap_of_the_intervals(trained, kind, words):
    results = [
        result("trained", "knn_accuracy", *trained),
        result("untrained", "knn_accuracy", 0.3, 0.2, 0.4),
    ]
    verdict = summarise(results)
    assert verdict.kind == kind
    assert words in verdict.lines[0]


def test_better_than_untrained_is_not_enough_below_the_pixels():
    results = [
        result("trained", "retrieval_r1", 0.5, 0.45, 0.55),
        result("untrained", "retrieval_r1", 0.3, 0.2, 0.4),
        result("pixels", "retrieval_r1", 0.6, 0.56, 0.64),
    ]
    verdict = summarise(results)
    assert verdict.kind == "unclear"
    assert "Not significantly above pixels" in verdict.lines[-1]


def test_without_intervals_nothing_is_judged():
    results = [result("trained", "knn_accuracy", 0.9), result("untrained", "knn_accuracy", 0.1)]
    assert "Not judged" in summarise(results).lines[0]


def test_better_than_all_encoders_is_better():
    results = [
        result("trained", "retrieval_r1", 0.7, 0.65, 0.75),
        result("untrained", "retrieval_r1", 0.3, 0.2, 0.4),
        result("pixels", "retrieval_r1", 0.5, 0.45, 0.55),
        result("frame differences", "retrieval_r1", 0.4, 0.35, 0.45),
    ]
    verdict = summarise(results)
    assert verdict.kind == "better"
    assert verdict.lines[-1] == "Also significantly above pixels and frame differences."


def test_headlines_are_of_the_trained_encoder():
    results = [
        result("trained", "knn_accuracy", 0.5, 0.4, 0.6),
        result("untrained", "knn_accuracy", 0.3),
        result("trained", "effective_rank", 12.0),
        result("pixels", "retrieval_r1", 0.5),
    ]
    [accuracy, rank] = headlines(results)
    assert accuracy.trained.value == "50.0 %"
    assert accuracy.untrained is not None
    assert accuracy.untrained.value == "30.0 %"
    assert (rank.label, rank.untrained) == ("effective rank", None)


def test_collapse_has_a_warning_with_its_signs():
    assert collapse_warning(60.0, 0.9, 192) is None
    assert "effective rank 1.20 of at most 192" in str(collapse_warning(1.2, 0.9, 192))
    assert "embedding std 0.010" in str(collapse_warning(None, 0.01, None))
