"""A run's newest checkpoint in, RUN/evaluation/results.json out.

    manifest, annotations -> split -> rows long enough for a clip
    -> one decode of each video -> four encoders -> features.npz        (reused where nothing it depends on changed)
    -> every evaluator on every encoder -> results.json

Nothing below this file knows of run folders, and nothing in an evaluator knows of another encoder.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from evaluation import features as cache
from evaluation.encoders import embed_all, frame_differences, pixels
from evaluation.features import Extracted, Features
from evaluation.forecasting import forecast_errors, forecasting
from evaluation.intervals import Result
from evaluation.recognition import knn, linear_probe
from evaluation.retrieval import retrieval
from evaluation.splits import Split, choose_split, video_names
from evaluation.stability import collapse, stability
from mofore.config import EvaluateConfig, PretrainConfig, asdict_plain
from mofore.data.dataset import DataConfig, EvaluationClips, PretrainClips, collate, usable_rows
from mofore.data.manifest import Annotations, Manifest, read_annotations, read_manifest
from mofore.data.views import AugmentConfig
from mofore.data.windows import fits
from mofore.errors import UserError
from mofore.pretraining import Pretraining, build_pretraining
from mofore.run import code_commit, load_pretraining

EVALUATORS: dict[str, Callable[[Features, EvaluateConfig], list[Result]]] = {
    "weighted nearest neighbours": knn,
    "linear probe": linear_probe,
    "retrieval": retrieval,
    "stability": stability,
    "collapse": collapse,
    "forecasting": forecasting,
}
NEED_LABELS = ("weighted nearest neighbours", "linear probe", "retrieval")
PLAIN_VIEWS = AugmentConfig(crop=1.0, flip=0.0, colour=0.0, hue=0.0, grey=0.0)


def evaluate(cfg: EvaluateConfig) -> Path:
    """Evaluate the teacher of a run beside the untrained encoder and two pixel baselines.

    Returns the path of results.json. Raises UserError where the run has no checkpoint, the manifest cannot be
    split, or no video of a part is long enough for a clip.
    """
    if cfg.views < 2:
        raise UserError(f"views={cfg.views}: stability compares times of a video, give views=2 or more.")
    run = Path(cfg.run)
    trained, config, checkpoint = load_pretraining(run)
    manifest = read_manifest(cfg.manifest or config.data.manifest)
    annotations = read_annotations(manifest.path)
    split = choose_split(video_names(manifest), annotations)
    data = replace(config.data, split=None, augment=PLAIN_VIEWS, keep=1.0)
    key = _key(cfg, data, checkpoint.digest, manifest, annotations, split)

    path = run / "evaluation" / "features.npz"
    extracted = None if cfg.force else cache.load(path, key)
    if extracted is None:
        extracted = extract(cfg, config, data, trained, manifest, split)
        cache.save(path, key, extracted, _columns(extracted.rows, annotations, split))

    labels = np.array([label or "" for label in annotations.labels], dtype=str)
    results = measure(extracted, labels, split, cfg)
    same = checkpoint.meta["manifest_digest"] == manifest.digest
    seen = f"{config.data.split or 'all'} videos of this manifest" if same else "another manifest"
    document = {
        "run": str(run),
        "manifest": manifest.path,
        "checkpoint": {"step": checkpoint.step, "digest": checkpoint.digest},
        "commit": code_commit(),
        "manifest_digest": manifest.digest,
        "split_digest": split.digest,
        "protocol": protocol(cfg, config, extracted.rows, labels, split) | {"pretraining": seen},
        "results": results,
    }
    return _write(run / "evaluation" / "results.json", document)


def measure(extracted: Extracted, labels: np.ndarray, split: Split, cfg: EvaluateConfig) -> list[dict]:
    """Every evaluator on every encoder. labels: str [rows of the manifest], "" unknown."""
    rows = extracted.rows
    results = []
    for encoder, clips in extracted.clips.items():
        errors = extracted.errors.get(encoder)
        features = Features(clips, labels[rows], split.groups[rows], split.parts[rows], errors)
        for name, evaluator in EVALUATORS.items():
            if name in NEED_LABELS and not (labels[rows] != "").any():
                continue
            for result in evaluator(features, cfg):
                told = replace(result, protocol=f"{result.protocol}, {split.name}")
                results.append({"encoder": encoder, **asdict(told)})
    return results


def extract(
    cfg: EvaluateConfig, config: PretrainConfig, data: DataConfig, trained: Pretraining, manifest: Manifest,
    split: Split,
) -> Extracted:  # fmt: skip
    """Embeddings of all videos of both parts, and forecasts of the test videos with room for two clips."""
    rows = usable_rows(manifest, data, clips=1)[0]
    rows = rows[split.parts[rows] != ""]
    for part in ("train", "test"):
        if part not in split.parts[rows]:
            raise UserError(
                f"{manifest.path}: no {part} video is long enough for a clip of {data.frames} frames at "
                f"{data.fps:g} fps. Give a manifest with longer videos, or pretrain with shorter clips."
            )
    durations = manifest.column("duration")
    ahead = np.array([fits(durations[row], data.frames, data.fps, 2) for row in rows], dtype=bool)
    ahead_rows = rows[ahead & (split.parts[rows] == "test")]

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {"trained": trained.to(device), "untrained": untrained(config).to(device)}
    encoders = {name: model.teacher.embed for name, model in models.items()}
    encoders |= {"pixels": pixels, "frame differences": frame_differences}
    # The server that workers are forked from imports what they need once, not every worker of both loaders.
    multiprocessing.set_forkserver_preload(["mofore.data.dataset"])
    loading = {
        "batch_size": cfg.batch,
        "num_workers": cfg.workers,
        "multiprocessing_context": "forkserver" if cfg.workers else None,
        "pin_memory": device.type == "cuda",
    }
    views = DataLoader(EvaluationClips(manifest, data, rows, cfg.views), **loading)  # type: ignore[arg-type]
    seen, clips = embed_all(encoders, views, device)
    forecasts = DataLoader(
        PretrainClips(manifest, data, ahead_rows, cfg.seed),
        sampler=[(0, position) for position in range(len(ahead_rows))],
        collate_fn=collate,
        **loading,  # type: ignore[arg-type]
    )
    errors = forecast_errors(models, forecasts, len(manifest), data.targets, device)
    return Extracted(seen, clips, {name: error.select(seen) for name, error in errors.items()})


def untrained(config: PretrainConfig) -> Pretraining:
    """The run's architecture with fresh weights from the run's seed, 2-D weights left aside."""
    fresh = replace(config, backbone=replace(config.backbone, pretrained_path=None))
    return build_pretraining(fresh.model(), config.seed).eval()


def protocol(
    cfg: EvaluateConfig, config: PretrainConfig, rows: np.ndarray, labels: np.ndarray, split: Split
) -> dict:
    """What all numbers of results.json have in common."""
    parts, known = split.parts[rows], labels[rows]
    notes = list(split.notes)
    if short := int((split.parts != "").sum()) - len(rows):
        notes.append(f"videos shorter than a clip, left out: {short}")
    if not (known != "").any():
        notes.append("no video has a label: metrics without labels only")
    return {
        "name": split.name,
        "encoder": "EMA teacher, frozen; mean over views",
        "views": cfg.views,
        "frames": config.data.frames,
        "fps": config.data.fps,
        "size": config.data.size,
        "train": int((parts == "train").sum()),
        "test": int((parts == "test").sum()),
        "classes": len(set(known) - {""}),
        "groups": len(set(split.groups[rows])),
        "interval": f"95%, bootstrap over source groups of test, {cfg.resamples} resamples, train held fixed",
        "seed": cfg.seed,
        "notes": notes,
    }


def _key(
    cfg: EvaluateConfig,
    data: DataConfig,
    checkpoint: str,
    manifest: Manifest,
    annotations: Annotations,
    split: Split,
) -> str:
    """Names everything that the cache holds or depends on."""
    depends = [checkpoint, manifest.digest, split.digest, annotations, cfg.views, cfg.seed]
    settings = {name: value for name, value in asdict_plain(data).items() if name != "manifest"}
    return hashlib.sha256(json.dumps([*depends, settings]).encode()).hexdigest()


def _columns(rows: np.ndarray, annotations: Annotations, split: Split) -> dict[str, np.ndarray]:
    """For readers of features.npz: str [N] each, "" unknown."""
    columns = {
        "uris": split.names,
        "labels": annotations.labels,
        "groups": annotations.groups,
        "splits": split.parts.tolist(),
    }
    return {
        name: np.array([value or "" for value in values], dtype=str)[rows] for name, values in columns.items()
    }


def _write(path: Path, document: dict) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(temporary, path)
    return path
