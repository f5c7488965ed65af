"""RUN/report.html: one self-contained file with the results and the training curves of a run.

`read_run` reads the run folder, `page_context` prepares what report.html.jinja prints. If a part of
a run is missing, the page shows the command that adds it. The page loads nothing: its content
security policy allows only data URIs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mofore.config import flatten_dict
from mofore.data.manifest import read_manifest
from mofore.data.storage import DecodeError
from mofore.errors import UserError
from mofore.evaluation import verdict
from mofore.evaluation.charts import Chart, interval_chart, training_curves
from mofore.evaluation.embedding_map import (
    LegendEntry,
    build_legend,
    mapped_rows,
    project,
    scatter,
)
from mofore.evaluation.features import Features, load_features
from mofore.evaluation.gallery import Gallery, build_gallery, indices_of_test
from mofore.evaluation.page import render_page
from mofore.evaluation.results_table import (
    build_table,
    encoder_names,
    find_metric,
    group_by_metric,
)
from mofore.evaluation.splits import video_names
from mofore.files import read_jsonl, write_text

MAPPED_ENCODERS = ("trained", "untrained")
TEMPLATE = Path(__file__).parent / "report.html.jinja"


@dataclass(frozen=True, slots=True)
class RunData:
    """The files of a run folder. results, features (by encoder): None before an evaluation."""

    folder: Path
    config_text: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    last_logged: datetime
    results: Mapping[str, Any] | None
    features: Mapping[str, Features] | None

    @property
    def evaluate_command(self) -> str:
        """The command that evaluates this run."""
        return f"mofore evaluate {self.folder}"


def write_report(run_dir: str | Path) -> Path:
    """Write RUN/report.html and return its path.

    Raises UserError, naming the file, if config.yaml or metrics.jsonl is missing or a file is
    damaged.
    """
    run = read_run(Path(run_dir))
    path = run.folder / "report.html"
    write_text(path, render_page(TEMPLATE, page_context(run)))
    return path


def read_run(folder: Path) -> RunData:
    """Read a run folder. Raises UserError, naming the file, if one is missing or damaged."""
    config_path, metrics_path = folder / "config.yaml", folder / "metrics.jsonl"
    if not config_path.is_file():
        raise UserError(f"{config_path} does not exist. Is {folder} a run folder?")
    config_text = config_path.read_text(encoding="utf-8")
    return RunData(
        folder=folder,
        config_text=config_text,
        config=yaml.safe_load(config_text) or {},
        environment=_read_json(folder / "environment.json") or {},
        metrics=read_metrics(metrics_path),
        last_logged=datetime.fromtimestamp(metrics_path.stat().st_mtime, UTC),
        results=_read_json(folder / "evaluation" / "results.json"),
        features=load_features(folder / "evaluation" / "features.npz", MAPPED_ENCODERS),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl, at least one.

    Raises UserError if there is none, or one is damaged.
    """
    metrics = read_jsonl(path)
    if not metrics:
        problem = "has no step yet" if path.is_file() else "does not exist"
        raise UserError(
            f"{path} {problem}. Train first: `mofore pretrain` writes it from the first step on."
        )
    return metrics


def page_context(run: RunData) -> dict[str, Any]:
    """The variables of report.html.jinja."""
    results = run.results["results"] if run.results else []
    gallery, gallery_note = _gallery(run)
    maps, legend, map_note = _maps(run)
    return {
        "run": run,
        "name": run.folder.resolve().name,
        "headlines": verdict.headlines(results),
        "verdict": verdict.summarise(results) if results else None,
        "warning": _collapse_warning(run, results),
        "table": build_table(results) if results else None,
        "intervals": _interval_chart(results),
        "curves": training_curves(run.metrics),
        "maps": maps,
        "legend": legend,
        "map_note": map_note,
        "gallery": gallery,
        "gallery_note": gallery_note,
        "environment": flatten_dict(dict(run.environment)),
        "written": datetime.now(UTC),
    }


def _interval_chart(results: list[dict[str, Any]]) -> Chart | None:
    """The metrics in percent, encoders side by side."""
    encoders = encoder_names(results)
    rows = []
    for name, row in group_by_metric(results).items():
        metric = find_metric(name)
        if metric.percent and any(result["value"] is not None for result in row.values()):
            rows.append((metric.label, [row.get(encoder) for encoder in encoders]))
    return interval_chart(rows, encoders) if rows else None


def _collapse_warning(run: RunData, results: list[dict[str, Any]]) -> str | None:
    """From the results of the evaluation; without them, from the last step that measured it."""
    trained = {r["metric"]: r["value"] for r in results if r["encoder"] == "trained"}
    max_rank = None
    if results and run.features and "trained" in run.features:
        features = run.features["trained"]
        max_rank = min(len(indices_of_test(features)), features.embeddings.shape[1])
    measured = [line for line in run.metrics if line.get("effective_rank") is not None]
    source = trained if "effective_rank" in trained else (measured or run.metrics)[-1]
    return verdict.collapse_warning(
        source.get("effective_rank"), source.get("embedding_std"), max_rank
    )


def _maps(run: RunData) -> tuple[list[Chart], list[LegendEntry], str]:
    """A map for each of MAPPED_ENCODERS, their legend, and how they were made or why not."""
    if not run.features:
        return [], [], ""
    charts, notes = [], []
    legend: list[LegendEntry] = []
    for encoder, features in run.features.items():
        test = indices_of_test(features)
        rows = test[mapped_rows(len(test))]
        labels, vectors = features.labels[rows], features.embeddings[rows]
        if len(rows) < 3 or not np.isfinite(vectors).all() or np.allclose(vectors, vectors[0]):
            notes.append(
                f"No map of the {encoder} encoder: its embeddings are too few, not finite or equal."
            )
            continue
        legend = build_legend(labels)
        points, method = project(vectors)
        charts.append(scatter(encoder, points, labels, legend))
        if not notes or method not in notes[0]:
            notes.insert(0, f"{len(rows)} of {len(test)} test videos, projected with {method}.")
    return charts, legend, " ".join(notes)


def _gallery(run: RunData) -> tuple[Gallery | None, str]:
    """The gallery, or why there is none: missing or changed videos must not prevent a report."""
    if not run.features or "trained" not in run.features:
        return None, ""
    features, results = run.features["trained"], run.results or {}
    path = results.get("manifest") or run.config["data"]["manifest"]
    problem = f"{path} is not the manifest that was evaluated, or has changed since."
    try:
        data = run.config["data"]
        manifest = read_manifest(path, data.get("root") if path == data["manifest"] else None)
        row_of = {name: row for row, name in enumerate(video_names(manifest))}
        same = results.get("manifest_digest", manifest.digest) == manifest.digest
        if not same or not set(features.names.tolist()) <= set(row_of):
            raise UserError(f"{problem} Evaluate again: `{run.evaluate_command}`.")
        return build_gallery(features, manifest, [row_of[name] for name in features.names]), ""
    except (UserError, DecodeError) as error:
        return None, f"The gallery needs the video files. {error}"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}). Remove it, or write it again.") from None
