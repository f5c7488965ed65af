"""A run folder as after training, with real videos and a real checkpoint, to evaluate."""

import itertools
from dataclasses import replace
from pathlib import Path

from mofore.checkpoint.saver import Saver
from mofore.checkpoint.writer import CheckpointConfig
from mofore.config import PretrainConfig, write_config
from mofore.data.dataset import DataConfig
from mofore.data.manifest import Row, read_manifest, write_manifest
from mofore.data.synthetic import MOTIONS, motion_video, write_h264
from mofore.data.verify import verify_video
from mofore.evaluation.config import EvaluateConfig
from mofore.models.backbone import BackboneConfig
from mofore.models.forecaster import ForecasterConfig
from mofore.models.objective import build_pretraining
from mofore.types import Shard

FPS, FRAMES, SIZE = 24, 20, 32


def make_rows(folder: Path) -> list[Row]:
    """Ten textures under eight motions."""
    made = []
    for texture, motion in itertools.product(range(10), MOTIONS):
        path = folder / motion / f"{texture}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_h264(path, motion_video(motion, texture, frames=FRAMES, size=SIZE, fps=FPS), FPS)
        made.append(verify_video(str(path)).row(label=motion, group=f"texture {texture}"))
    return made


def make_run(folder: Path, rows: list[Row], seed: int = 5) -> Path:
    """A run folder as after training: its weights were initialised with another seed."""
    manifest = folder / "manifest.parquet"
    write_manifest(manifest, rows)
    config = PretrainConfig(
        run_dir=str(folder / "run"),
        data=DataConfig(manifest=str(manifest), frames=4, fps=12.0, size=16, targets=2),
        backbone=BackboneConfig(embed_dim=16, depth=1, num_heads=2, patch_size=8),
        forecaster=ForecasterConfig(dim=16, depth=1, heads=2),
    )
    run = folder / "run"
    run.mkdir()
    write_config(config, run / "config.yaml")
    model = build_pretraining(config.model(), seed)
    weights = {f"weights/{name}": parameter.data for name, parameter in model.named_parameters()}
    saver = Saver(
        run, CheckpointConfig(), {name: list(tensor.shape) for name, tensor in weights.items()}
    )
    shards = (Shard(name, 0, tensor.flatten(), True) for name, tensor in weights.items())
    saver.save(7, shards, {"manifest_digest": read_manifest(manifest).digest})
    saver.close()
    return run


def make_config(run: Path, **others) -> EvaluateConfig:
    return replace(
        EvaluateConfig(run=str(run), workers=0, bootstrap_resamples=50, batch_size=8), **others
    )
