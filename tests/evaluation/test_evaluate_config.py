"""EvaluateConfig: impossible values are errors that name the key."""

import pytest

from mofore.errors import UserError
from mofore.evaluation.config import EvaluateConfig


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("views", 1, "views=1.*views=2 or more"),
        ("batch_size", 0, "batch_size=0 must be at least 1"),
        ("knn_k", 0, "knn_k=0 must be at least 1"),
        ("bootstrap_resamples", 0, "bootstrap_resamples=0 must be at least 1"),
        ("workers", -1, "workers=-1 must be at least 0"),
        ("seed", -1, "seed=-1 must be at least 0"),
        ("knn_temperature", 0.0, "knn_temperature=0.0 must be above 0"),
    ],
)
def test_an_impossible_value_names_its_key(key, value, message):
    with pytest.raises(UserError, match=message):
        EvaluateConfig(run="nowhere", **{key: value})
