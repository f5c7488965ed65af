"""Feature extraction: each video is decoded once for both models and both pixel baselines."""

import multiprocessing
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader

from mofore.config import PretrainConfig
from mofore.data.dataset import (
    DataConfig,
    EvaluationClips,
    PretrainClips,
    collate_unaugmented,
    usable_rows,
)
from mofore.data.loader import resolve_workers
from mofore.data.manifest import Manifest
from mofore.data.shared_memory import batches_in_flight, check_shared_memory
from mofore.data.views import AugmentConfig
from mofore.data.windows import clips_fit
from mofore.errors import UserError
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.encoders import embed_all, frame_differences, pixels
from mofore.evaluation.features import Features
from mofore.evaluation.forecasting import forecast_errors
from mofore.evaluation.splits import EvaluationSplit
from mofore.models.objective import Pretraining, build_pretraining
from mofore.precision import Precision, set_matmul_precision

DEFAULT_PREFETCH_FACTOR = 2  # of torch's DataLoader
NO_AUGMENTATION = AugmentConfig(
    crop_min_area=1.0, flip_prob=0.0, colour_jitter=0.0, hue_jitter=0.0, greyscale_prob=0.0
)


def evaluation_data(data: DataConfig) -> DataConfig:
    """The clips of the pretraining, from all videos, without augmentation and with all tokens."""
    return replace(data, split=None, augment=NO_AUGMENTATION, token_keep_ratio=1.0)


def extract_features(
    cfg: EvaluateConfig,
    config: PretrainConfig,
    model: Pretraining,
    manifest: Manifest,
    split: EvaluationSplit,
    device: torch.device,
    precision: Precision,
) -> dict[str, Features]:
    """Features of all train and test videos by encoder, with forecast errors of the test videos.

    precision: a resolved one, of the models; the pixel baselines are fp32. Raises UserError if no
    video of a split is long enough for a clip.
    """
    data = evaluation_data(config.data)
    rows, forecast_rows = _select_rows(manifest, data, split)
    set_matmul_precision(precision)
    models = {"trained": model.to(device), "untrained": untrained_model(config).to(device)}
    encoders = {name: each.teacher.embed for name, each in models.items()}
    encoders |= {"pixels": pixels, "frame differences": frame_differences}
    # The forkserver imports the dataset once, instead of every worker of both loaders.
    multiprocessing.set_forkserver_preload(["mofore.data.dataset"])
    workers = resolve_workers(cfg.workers, device.type)
    if workers:
        clip = 3 * data.frames * data.size**2
        clips = max(cfg.views, 1 + data.targets)
        batches = batches_in_flight(workers, DEFAULT_PREFETCH_FACTOR)
        check_shared_memory(cfg.batch_size * clips * clip, batches, 1, "batch_size")
    loading = {
        "batch_size": cfg.batch_size,
        "num_workers": workers,
        "multiprocessing_context": "forkserver" if workers else None,
        "pin_memory": device.type == "cuda",
    }
    views = DataLoader(EvaluationClips(manifest, data, rows, cfg.views), **loading)  # type: ignore[arg-type]
    rows, embeddings = embed_all(encoders, views, device, precision)
    forecasts = DataLoader(
        PretrainClips(manifest, data, forecast_rows, cfg.seed),
        sampler=[(0, position) for position in range(len(forecast_rows))],
        collate_fn=collate_unaugmented,
        **loading,  # type: ignore[arg-type]
    )
    errors = forecast_errors(models, forecasts, len(manifest), data.targets, device, precision)
    return {
        name: Features(
            each,
            labels=split.labels[rows],
            groups=split.groups[rows],
            splits=split.splits[rows],
            names=split.names[rows],
            errors=errors[name].select(rows) if name in errors else None,
        )
        for name, each in embeddings.items()
    }


def _select_rows(
    manifest: Manifest, data: DataConfig, split: EvaluationSplit
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (i64) of both splits with room for a clip, and test rows with room for two."""
    rows = usable_rows(manifest, data, clips=1)[0]
    rows = rows[split.splits[rows] != ""]
    for name in ("train", "test"):
        if name not in split.splits[rows]:
            raise UserError(
                f"{manifest.path}: no {name} video is long enough for a clip of {data.frames} "
                f"frames at {data.fps:g} fps. Give a manifest with longer videos, or pretrain with "
                "shorter clips."
            )
    durations = manifest.column("duration")[rows]
    room = [clips_fit(duration, data.frames, data.fps, 2) for duration in durations]
    return rows, rows[np.array(room, dtype=bool) & (split.splits[rows] == "test")]


def untrained_model(config: PretrainConfig) -> Pretraining:
    """The run's architecture, initialised from the run's seed without pretrained 2-D weights."""
    fresh = replace(config, backbone=replace(config.backbone, pretrained_path=None))
    return build_pretraining(fresh.model(), config.seed).eval()
