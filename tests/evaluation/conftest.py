"""Real videos of a small run, and synthetic features for the evaluators: Gaussian classes, source
groups of a few videos each.
"""

from collections.abc import Callable

import numpy as np
import pytest

from mofore.data.manifest import Row
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.features import Features
from tests.evaluation.small_run import make_rows


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return make_rows(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def cfg() -> EvaluateConfig:
    return EvaluateConfig(run="nowhere", bootstrap_resamples=200)


@pytest.fixture
def make_features() -> Callable[..., Features]:
    def make(
        classes: int = 4,
        groups: int = 6,
        videos: int = 3,
        views: int = 4,
        dim: int = 16,
        separation: float = 1.0,
        noise: float = 0.3,
        seed: int = 0,
    ) -> Features:
        """`groups` per class, `videos` per group; every third group of a class is test."""
        rng = np.random.default_rng(seed)
        label, group, _ = (
            part.ravel()
            for part in np.meshgrid(range(classes), range(groups), range(videos), indexing="ij")
        )
        centres = separation * rng.normal(size=(classes, dim))
        sources = 0.3 * rng.normal(size=(classes, groups, dim))
        video = centres[label] + sources[label, group] + noise * rng.normal(size=(len(label), dim))
        clips = video[:, None] + noise * rng.normal(size=(len(label), views, dim))
        return Features(
            clips.astype(np.float32),
            np.array([f"class {i}" for i in label]),
            np.array([f"{i} {j}" for i, j in zip(label, group, strict=True)]),
            np.where(group % 3 == 0, "test", "train"),
            np.array([f"{i}.mp4" for i in range(len(label))]),
        )

    return make
