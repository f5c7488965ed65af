"""A small valid video for the tests of mofore.data."""

from pathlib import Path

import pytest

from tests import videos


@pytest.fixture(scope="session")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of 32 x 32, to be copied."""
    path = tmp_path_factory.mktemp("short") / "short.mp4"
    return videos.write_video(path, videos.numbered_frames(8, 32, 32))
