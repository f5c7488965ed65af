"""A run folder in, one self-contained HTML file out: RUN/report.html, which can be attached to a message.

`read_run` reads config.yaml, environment.json, metrics.jsonl, evaluation/results.json and features.npz;
`evaluation.table` turns results into what is printed, `evaluation.charts` and `evaluation.gallery` draw;
report.html.jinja lays it out. What a run does not have yet is named on the page with the command that adds it.
The page loads nothing: its content security policy allows data URIs only.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation import charts, table
from evaluation.gallery import Embedded, Gallery, gallery
from evaluation.splits import video_names
from mofore.data.decode import Undecodable
from mofore.data.manifest import read_manifest, replacing
from mofore.errors import UserError

MAPPED = ("trained", "untrained")


@dataclass(frozen=True, slots=True)
class Run:
    """What a run folder holds; None for what it does not hold yet. features: encoder -> its embeddings."""

    folder: Path
    config_text: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    logged: datetime
    results: Mapping[str, Any] | None
    features: Mapping[str, Embedded] | None

    @property
    def evaluate(self) -> str:
        """The command that evaluates this run."""
        return f"mofore evaluate run={self.folder}"


def write_report(run_dir: str | Path) -> Path:
    """Write RUN/report.html and return its path. UserError where `run_dir` has no config.yaml or no metrics."""
    run = read_run(Path(run_dir))
    page = _template().render(**contents(run))
    path = run.folder / "report.html"
    with replacing(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return path


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError, naming the file, for what is missing or damaged."""
    config_text = _text(folder / "config.yaml", f"Is {folder} the folder of a run?")
    environment, results = _json(folder / "environment.json"), _json(folder / "evaluation" / "results.json")
    metrics_path = folder / "metrics.jsonl"
    metrics = read_metrics(metrics_path)
    return Run(
        folder=folder,
        config_text=config_text,
        config=yaml.safe_load(config_text) or {},
        environment=environment or {},
        metrics=metrics,
        logged=datetime.fromtimestamp(metrics_path.stat().st_mtime, UTC),
        results=results,
        features=read_features(folder / "evaluation" / "features.npz"),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line without its end, which a running or killed job leaves, is left out."""
    train = "Train first: `mofore pretrain ...` writes it from the first step on."
    lines = _text(path, train).splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    if not lines:
        raise UserError(f"{path} holds no step yet. {train}")
    metrics = []
    for number, line in enumerate(lines, 1):
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error.msg}). Remove that line.") from None
    return metrics


def read_features(path: Path) -> dict[str, Embedded] | None:
    """The embedded videos under each encoder in MAPPED; None if there is no such file."""
    again = "Make it again: `mofore evaluate` with force=true."
    try:
        with np.load(path, allow_pickle=False) as file:
            labels = file["labels"]
            rows = file["rows"] if "rows" in file else np.arange(len(labels))
            known = rows, file["uris"], labels, file["groups"], file["splits"]
            return {
                encoder: Embedded(file[f"{encoder}/embeddings"], *known)
                for encoder in MAPPED
                if f"{encoder}/embeddings" in file
            }
    except FileNotFoundError:
        return None
    except (BadZipFile, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path} is not a whole features file ({error}). {again}") from None


def contents(run: Run) -> dict[str, Any]:
    """Everything that the template prints, by name."""
    results = run.results["results"] if run.results else []
    shown, gallery_note = _gallery(run)
    maps, legend, map_note = _maps(run)
    return {
        "run": run,
        "name": run.folder.resolve().name,
        "headlines": table.headlines(results),
        "verdict": table.verdict(results) if results else None,
        "warning": _warning(run, results),
        "table": table.table(results) if results else None,
        "intervals": _intervals(results),
        "curves": charts.curves(run.metrics),
        "maps": maps,
        "legend": legend,
        "map_note": map_note,
        "gallery": shown,
        "labelled": bool(legend),
        "gallery_note": gallery_note,
        "environment": _flat(run.environment),
        "written": datetime.now(UTC),
    }


def _intervals(results: list[dict[str, Any]]) -> charts.Picture | None:
    encoders = table.encoders_of(results)
    rows = []
    for name, row in table.by_metric(results).items():
        metric = table.describe(name)
        if metric.percent and any(result["value"] is not None for result in row.values()):
            rows.append((metric.label, [row.get(encoder) for encoder in encoders]))
    return charts.intervals(rows, encoders) if rows else None


def _warning(run: Run, results: list[dict[str, Any]]) -> str | None:
    """From the evaluation where there is one, else from the last step that was logged."""
    trained = {r["metric"]: r["value"] for r in results if r["encoder"] == "trained"}
    last = run.metrics[-1]
    most = None
    if results and run.features and "trained" in run.features:
        embedded = run.features["trained"]
        most = min(len(embedded.test), embedded.embeddings.shape[1])
    source = trained if "effective_rank" in trained else last
    return table.collapse_warning(source.get("effective_rank"), source.get("embedding_std"), most)


def _maps(run: Run) -> tuple[list[charts.Picture], list[charts.Legend], str]:
    """The map of each encoder in MAPPED, their common legend, and how they were made (or why there are none)."""
    if not run.features:
        return [], [], ""
    pictures, notes = [], []
    legend: list[charts.Legend] = []
    for encoder, embedded in run.features.items():
        rows = embedded.test[charts.mapped_rows(len(embedded.test))]
        labels = embedded.labels[rows]
        vectors = embedded.embeddings[rows]
        if len(rows) < 3 or not np.isfinite(vectors).all() or np.allclose(vectors, vectors[0]):
            notes.append(
                f"No map of the {encoder} encoder: its embeddings are too few, not finite or all the same."
            )
            continue
        legend = charts.legend_of(labels)
        points, method = charts.project(vectors)
        pictures.append(charts.scatter(encoder, points, labels, legend))
        if not notes or method not in notes[0]:
            notes.insert(0, f"{len(rows)} of {len(embedded.test)} test videos, {method}.")
    return pictures, legend, " ".join(notes)


def _gallery(run: Run) -> tuple[Gallery | None, str]:
    """The gallery, or why there is none: videos may well have moved since, and the rest of the page stands."""
    if not run.features or "trained" not in run.features:
        return None, ""
    embedded = run.features["trained"]
    results = run.results or {}
    path = results.get("manifest") or run.config["data"]["manifest"]
    try:
        manifest = read_manifest(path)
        if results.get("manifest_digest", manifest.digest) != manifest.digest:
            raise UserError(
                f"{path} is not the manifest that was evaluated, or has changed since. Evaluate again: `{run.evaluate}`."
            )
        names = video_names(manifest)
        if [names[row] for row in embedded.rows if row < len(names)] != embedded.names.tolist():
            raise UserError(
                f"{path} lists other videos than were evaluated. Evaluate again: `{run.evaluate}`."
            )
        return gallery(embedded, manifest), ""
    except (UserError, Undecodable) as error:
        return None, f"The gallery needs the videos themselves. {error}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _text(path: Path, remedy: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no {path}. {remedy}") from None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}). Remove it, or write it again.") from None


def _template():
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja")
