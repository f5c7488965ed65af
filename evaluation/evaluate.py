"""Evaluation of a run's newest checkpoint: RUN/evaluation/results.json.

manifest, annotations -> split -> videos that are long enough for a clip
-> features of four encoders, cached in features.npz
-> every evaluator on every encoder -> results.json
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mofore.checkpoint.reader import Checkpoint
from mofore.config import PretrainConfig, to_plain_dict
from mofore.data.manifest import Manifest, read_annotations, read_manifest
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.extraction import evaluation_data, extract_features
from mofore.evaluation.features import Features, load_cached_features, save_features
from mofore.evaluation.forecasting import forecasting
from mofore.evaluation.intervals import Result
from mofore.evaluation.recognition import knn, linear_probe
from mofore.evaluation.retrieval import retrieval
from mofore.evaluation.splits import EvaluationSplit, choose_split, video_names
from mofore.evaluation.stability import collapse, stability
from mofore.files import write_json
from mofore.precision import Precision, resolve_precision
from mofore.run_folder import code_commit, load_pretraining

logger = logging.getLogger(__name__)

EVALUATORS: dict[str, Callable[[Features, EvaluateConfig], list[Result]]] = {
    "knn": knn,
    "linear_probe": linear_probe,
    "retrieval": retrieval,
    "stability": stability,
    "collapse": collapse,
    "forecasting": forecasting,
}
NEED_LABELS = ("knn", "linear_probe", "retrieval")


def evaluate(cfg: EvaluateConfig) -> Path:
    """Evaluate the teacher of a run, the untrained encoder and two pixel baselines.

    Runs on the GPU if there is one. Returns the path of results.json. Raises UserError if the run
    has no checkpoint, the manifest cannot be split, no video of a split is long enough for a clip,
    or the GPU has no bf16 units for `precision=bf16`.
    """
    run = Path(cfg.run)
    model, config, checkpoint = load_pretraining(run)
    root = cfg.root or (None if cfg.manifest else config.data.root)
    manifest = read_manifest(cfg.manifest or config.data.manifest, root)
    split = choose_split(video_names(manifest), read_annotations(manifest.path))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = resolve_precision(cfg.precision, device, key="precision")
    key = _cache_key(cfg, config, checkpoint, manifest, split, precision)

    path = run / "evaluation" / "features.npz"
    cached = None if cfg.force else load_cached_features(path, key)
    if cached is None:
        logger.info(
            "Extracting features of %s, step %d, in %s", run, checkpoint.step, precision.value
        )
        features = extract_features(cfg, config, model, manifest, split, device, precision)
        computed_on = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        save_features(path, key, features, computed_on)
    else:
        logger.info("Using the cached features in %s", path)
        features, computed_on = cached

    same_manifest = checkpoint.meta["manifest_digest"] == manifest.digest
    seen = f"{config.data.split or 'all'} videos of this manifest"
    document = {
        "run": str(run),
        "manifest": manifest.path,
        "checkpoint": {"step": checkpoint.step, "digest": checkpoint.digest},
        "commit": code_commit(),
        "device": computed_on,
        "precision": precision.value,
        "manifest_digest": manifest.digest,
        "split_digest": split.digest,
        "protocol": _protocol(cfg, config, features["trained"], split)
        | {"pretrained_on": seen if same_manifest else "another manifest"},
        "results": measure(features, cfg, split.name),
    }
    results = path.with_name("results.json")
    write_json(results, document)
    return results


def measure(
    features: Mapping[str, Features], cfg: EvaluateConfig, split_name: str
) -> list[dict[str, Any]]:
    """Apply every evaluator to every encoder: one dict per number, the `Result` and its encoder."""
    results = []
    for encoder, each in features.items():
        for name, evaluator in EVALUATORS.items():
            if name in NEED_LABELS and not (each.labels != "").any():
                continue
            for result in evaluator(each, cfg):
                protocol = f"{result.protocol}, {split_name}"
                results.append({"encoder": encoder, **asdict(result), "protocol": protocol})
    return results


def _protocol(
    cfg: EvaluateConfig, config: PretrainConfig, features: Features, split: EvaluationSplit
) -> dict[str, Any]:
    """What all numbers of results.json have in common."""
    notes = list(split.notes)
    if short := int((split.splits != "").sum()) - len(features.splits):
        notes.append(f"videos shorter than a clip, left out: {short}")
    if not (features.labels != "").any():
        notes.append("no video has a label: only metrics that need no labels")
    return {
        "split": split.name,
        "encoder": "EMA teacher, frozen; mean over views",
        "views": cfg.views,
        "frames": config.data.frames,
        "fps": config.data.fps,
        "size": config.data.size,
        "train_videos": int((features.splits == "train").sum()),
        "test_videos": int((features.splits == "test").sum()),
        "classes": len(set(features.labels) - {""}),
        "source_groups": len(set(features.groups)),
        "intervals": f"95%, bootstrap over source groups of test, {cfg.bootstrap_resamples} "
        "resamples, train fixed",
        "seed": cfg.seed,
        "notes": notes,
    }


def _cache_key(
    cfg: EvaluateConfig,
    config: PretrainConfig,
    checkpoint: Checkpoint,
    manifest: Manifest,
    split: EvaluationSplit,
    precision: Precision,
) -> str:
    """sha256 (hex) of everything that features.npz contains or depends on, but the device."""
    data = to_plain_dict(evaluation_data(config.data))
    del data["manifest"], data["root"]  # the digest counts, not the paths
    digests = [checkpoint.digest, manifest.digest, split.digest]
    annotations = [split.labels.tolist(), split.groups.tolist()]
    text = json.dumps([*digests, *annotations, cfg.views, cfg.seed, data, precision.value])
    return hashlib.sha256(text.encode()).hexdigest()
