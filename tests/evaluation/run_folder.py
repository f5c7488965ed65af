"""A run folder for tests of the report: real videos, embeddings of them, real intervals."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from mofore.data.decode import open_video, read_frames
from mofore.data.manifest import Row, read_manifest, write_manifest
from mofore.data.verify import verify_video
from mofore.evaluation.features import (
    Features,
    l2_normalise,
    nearest_neighbours,
    save_features,
)
from mofore.evaluation.forecasting import NO_FORECASTER
from mofore.evaluation.intervals import Bootstrap, Result, missing
from tests.videos import write_video

CLASSES = (
    "drift & left",
    "drift right",
    "fall",
    "grow",
    "rise",
    "swap <b>",
)  # names that HTML must not take as markup


def moving(
    label: str, seed: int, frames: int = 20, height: int = 72, width: int = 96
) -> np.ndarray:
    """A bright disc on a coloured background that moves as the class says. u8 [n, H, W, 3]."""
    rng = np.random.default_rng(seed)
    background, disc = rng.integers(20, 110, 3), rng.integers(150, 255, 3)
    rows, columns = np.mgrid[:height, :width]
    video = np.empty((frames, height, width, 3), np.uint8)
    for i, t in enumerate(np.linspace(0, 1, frames)):
        x = {
            "drift & left": 0.9 - 0.8 * t,
            "drift right": 0.1 + 0.8 * t,
            "swap <b>": 0.2 + 0.6 * (i % 2),
        }.get(label, 0.5)
        y = {"fall": 0.1 + 0.8 * t, "rise": 0.9 - 0.8 * t}.get(label, 0.5)
        radius = height * (0.05 + 0.3 * t if label == "grow" else 0.15)
        inside = (rows - y * height) ** 2 + (columns - x * width) ** 2 < radius**2
        video[i] = np.where(inside[..., None], disc, background)
    return video


def make_videos(folder: Path, groups: int = 4, labelled: bool = True) -> list[Row]:
    """Two videos per class and source group; the last quarter of the groups is test."""
    rows = []
    for group in range(groups):
        for number, label in enumerate(CLASSES * 2):
            name = f"group{group}-{number:02d}.mp4"
            frames = moving(label, seed=100 * group + number)
            write_video(folder / name, frames, fps=10)
            split = (
                ("test" if group >= groups - max(1, groups // 4) else "train") if labelled else None
            )
            known = dict(label=label, group=f"g{group}") if labelled else {}
            rows.append(verify_video(str(folder / name)).row(name, split=split, **known))
    return rows


def make_run(
    folder: Path, manifest: Path, rows: Sequence[Row], evaluated: bool = True, steps: int = 300
) -> Path:
    """config.yaml, environment.json, metrics.jsonl and, if `evaluated`, the evaluation folder."""
    write_manifest(manifest, rows)
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    config = {
        "steps": steps,
        "seed": 0,
        "data": {"manifest": str(manifest)},
        "teacher": {"momentum": 0.996},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "commit": "0" * 40,
        "world_size": 1,
        "packages": {"torch": "2.14.1"},
        "host": "<laptop>",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in curves(steps))
    )
    if evaluated:
        write_evaluation(folder, manifest, rows)
    return folder


def curves(steps: int) -> list[dict[str, float]]:
    """Metrics with the shape of a usual training."""
    rng = np.random.default_rng(0)
    lines = []
    for step in range(1, steps + 1):
        t = step / steps
        forecast, contrast = np.exp(-3 * t) + 0.3, 4 * np.exp(-2 * t) + 0.5
        line = {
            "forecast_loss": forecast,
            "contrastive_loss": contrast,
            "loss": forecast + contrast,
            "grad_norm": 20 * np.exp(-6 * t) + 0.4,
        }
        line |= {
            "contrastive_accuracy": 0.9 * (1 - np.exp(-3 * t)),
            "effective_rank": 8 + 60 * t,
            "embedding_std": 0.3 + 0.5 * t,
            "skipped_updates": 0,
        }
        line = {key: float(value * np.exp(rng.normal(0, 0.08))) for key, value in line.items()}
        line |= {
            "lr": 1e-3 * min(10 * t, 1) * (1 + np.cos(np.pi * t)) / 2,
            "teacher_momentum": 1 - 0.004 * (1 + np.cos(np.pi * t)) / 2,
        }
        line |= {
            "samples_per_second": float(rng.normal(40, 3)),
            "data_wait_fraction": float(rng.uniform(0, 0.1)),
            "mean_gap": 0.8,
        }
        if step % 20 == 0:  # the collapse monitor runs every 20 steps
            line |= {
                "monitor_effective_rank": 5 + 9 * t,
                "monitor_embedding_std": 0.2 + 0.3 * t,
                "monitor_stability_margin": 0.2 * t,
            }
        lines.append({"step": step} | line)
    return lines


def write_evaluation(folder: Path, manifest: Path, rows: Sequence[Row]) -> None:
    """features.npz and results.json as `mofore evaluate` writes them."""
    videos = read_manifest(manifest)
    # The first video counts as too short, so rows of manifest and features differ by one.
    rows = rows[1:]
    clips = [read_clip(videos[row]) for row in range(1, len(videos))]
    pixels = np.array([frames.mean(0).ravel() for frames in clips], np.float32)
    changes = np.array([np.diff(frames, axis=0).mean(-1).ravel() for frames in clips], np.float32)
    random = np.random.default_rng(0).normal(size=(pixels.shape[1], 64)).astype(np.float32)
    encoders = {
        "trained": changes / changes.std(),
        "untrained": np.tanh(pixels @ random),
        "pixels": pixels,
        "frame differences": np.abs(changes),
    }
    labels = np.array([row.label or "" for row in rows])
    groups = np.array([row.group or f"video {row.uri}" for row in rows])
    splits = np.array([row.split or "" for row in rows])
    names = np.array([row.uri for row in rows])
    features = {
        name: Features(embeddings[:, None], labels, groups, splits, names)
        for name, embeddings in encoders.items()
    }
    save_features(folder / "evaluation" / "features.npz", "key", features, "cpu")
    test = splits == "test"
    protocol = {
        "split": "manifest-split",
        "views": 1,
        "train_videos": int((~test).sum()),
        "test_videos": int(test.sum()),
        "classes": len(set(labels) - {""}),
        "source_groups": len(set(groups)),
        "intervals": "95%, bootstrap over videos",
        "pretrained_on": "all videos of this manifest",
        "notes": [],
    }
    results = {
        "run": str(folder),
        "checkpoint": {"step": 300, "digest": "ab12" * 16},
        "commit": "1" * 40,
        "device": "NVIDIA H100 80GB HBM3",
        "precision": "bf16",
        "manifest_digest": videos.digest,
        "split_digest": "cd" * 32,
        "protocol": protocol,
        "results": [result for name in features for result in measure(name, features[name])],
    }
    (folder / "evaluation" / "results.json").write_text(json.dumps(results))


def read_clip(video: Any) -> np.ndarray:
    """Eight frames over a whole video, 8 x 8 pixels. f32 [8, 8, 8, 3] in 0..1."""
    with open_video(video) as reader:
        frames = read_frames(reader, np.linspace(0, video.frames - 1, 8).round().astype(int))
    small = [np.asarray(Image.fromarray(frame).resize((8, 8))) for frame in frames]
    return np.stack(small).astype(np.float32) / 255


def measure(encoder: str, features: Features) -> list[dict[str, Any]]:
    """kNN, R@1, R@5, a cosine, the effective rank, and a metric that only models have."""
    train, test = features.subset("train"), features.subset("test")
    results: list[Result] = []
    if len(test.labels) and (test.labels != "").any():
        bootstrap = Bootstrap(test.names, 200, 0)
        _, neighbours = nearest_neighbours(test.embeddings, train.embeddings, 5)
        hits = train.labels[neighbours] == test.labels[:, None]
        gallery = "test queries, train gallery, cosine similarity"
        for metric, scores, protocol in (
            ("knn_accuracy", hits.mean(1) > 0.5, "kNN, k=5"),
            ("retrieval_r1", hits[:, 0], gallery),
            ("retrieval_r5", hits.any(1), gallery),
        ):
            samples = bootstrap.mean(scores.astype(float))
            results.append(bootstrap.result(metric, samples, len(scores), protocol))
    embeddings, n = features.embeddings, len(test.labels)
    values = np.linalg.svd(embeddings, compute_uv=False)
    share = values[values > 0] / values.sum()
    rank = float(np.exp(-(share * np.log(share)).sum()))
    cosines = l2_normalise(embeddings) @ l2_normalise(embeddings).T
    mean, std = float(cosines.mean()), float(cosines.std())
    protocol = "different source groups"
    results += [
        Result("different_video_cosine", mean, None, None, n, protocol, std=std),
        Result("effective_rank", rank, None, None, n, "RankMe, test"),
    ]
    protocol = "forecast_mse / persistence_mse, test"
    if encoder in ("trained", "untrained"):
        results.append(Result("forecast_relative_mse", 0.7, None, None, n, protocol))
    else:
        results.append(missing("forecast_relative_mse", protocol, NO_FORECASTER))
    return [{"encoder": encoder, **asdict(result)} for result in results]
