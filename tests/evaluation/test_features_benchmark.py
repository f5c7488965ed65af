"""benchmarks.features at a tiny size: every part gives a row, and the rows are JSON."""

import json
from pathlib import Path

from benchmarks.features import feature_rows, write_videos
from mofore.config import PretrainConfig
from mofore.data.dataset import DataConfig
from mofore.data.windows import clips_fit
from mofore.evaluation.config import EvaluateConfig
from mofore.models.backbone import BackboneConfig
from mofore.models.forecaster import ForecasterConfig


def tiny() -> PretrainConfig:
    return PretrainConfig(
        data=DataConfig(manifest="none", frames=4, size=32),
        backbone=BackboneConfig(embed_dim=16, depth=1, num_heads=2),
        forecaster=ForecasterConfig(dim=16, depth=1, heads=2),
    )


def test_every_part_is_measured() -> None:
    evaluation = EvaluateConfig(run="none", views=2, batch_size=4, workers=0)
    rows = list(feature_rows(tiny(), evaluation, videos=16, seconds=0.1))
    assert list(dict.fromkeys(row["part"] for row in rows)) == ["model", "copies", "videos"]
    assert all(row["clips_per_second"] > 0 for row in rows)
    assert json.loads(json.dumps(rows)) == rows


def test_the_videos_have_room_for_a_context_and_a_target(tmp_path: Path) -> None:
    config = tiny()
    rows = write_videos(tmp_path, 17, config)
    assert len({row.uri for row in rows}) == 17
    assert all(clips_fit(row.duration, config.data.frames, config.data.fps, 2) for row in rows)
