"""End-to-end evaluation of a run: small real videos, a real checkpoint, all four encoders."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from mofore.data.dataset import EvaluationClips
from mofore.data.manifest import read_manifest
from mofore.errors import UserError
from mofore.evaluation.console import rich_table
from mofore.evaluation.evaluate import evaluate
from mofore.evaluation.features import load_features
from mofore.evaluation.results_table import find_metric
from mofore.run_folder import load_pretraining
from tests.evaluation.small_run import make_config, make_run

ENCODERS = ["trained", "untrained", "pixels", "frame differences"]


@pytest.fixture
def run(tmp_path, rows) -> Path:
    return make_run(tmp_path, rows)


def read_results(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory, rows) -> Path:
    run = make_run(tmp_path_factory.mktemp("finished"), rows)
    evaluate(make_config(run))
    return run


def test_every_value_has_an_interval_a_protocol_and_n(finished):
    found = read_results(finished / "evaluation" / "results.json")
    assert found["checkpoint"]["step"] == 7
    assert found["protocol"]["split"] == "group-split"
    assert (found["protocol"]["train_videos"], found["protocol"]["test_videos"]) == (64, 16)
    assert (found["protocol"]["classes"], found["protocol"]["source_groups"]) == (8, 10)
    assert found["protocol"]["pretrained_on"] == "all videos of this manifest"
    assert list(dict.fromkeys(result["encoder"] for result in found["results"])) == ENCODERS
    for result in found["results"]:
        if result["value"] is None:
            assert result["note"]
            assert result["low"] is result["high"] is None
            continue
        assert result["low"] <= result["value"] <= result["high"], result
        assert result["n"] > 0
        assert result["protocol"].endswith("group-split")


def test_every_encoder_has_every_metric(finished):
    found = read_results(finished / "evaluation" / "results.json")["results"]
    metrics = {
        encoder: [r["metric"] for r in found if r["encoder"] == encoder] for encoder in ENCODERS
    }
    assert all(metrics[encoder] == metrics["trained"] for encoder in ENCODERS)
    assert {
        "knn_accuracy",
        "linear_probe_accuracy",
        "retrieval_r1",
        "retrieval_r50",
        "same_video_cosine",
        "same_class_cosine",
        "different_class_cosine",
        "consecutive_view_cosine",
        "stability_margin",
        "forecast_mse",
        "persistence_mse",
        "mean_latent_mse",
        "forecast_relative_mse",
        "forecast_r2",
        "effective_rank",
        "embedding_std",
    } <= set(metrics["trained"])
    forecast = {r["encoder"]: r["value"] for r in found if r["metric"] == "forecast_mse"}
    assert forecast["pixels"] is forecast["frame differences"] is None
    assert forecast["trained"] > 0
    assert forecast["trained"] != forecast["untrained"]


def test_the_cache_has_the_teachers_embeddings_of_centre_crops(finished, rows):
    model, config, _ = load_pretraining(finished)
    manifest = read_manifest(config.data.manifest)
    clips, row = EvaluationClips(manifest, config.data, np.arange(len(rows)), 4)[11]
    with torch.inference_mode():
        expected = model.teacher.embed(clips).numpy()
    features = load_features(finished / "evaluation" / "features.npz", ["trained"])
    assert features is not None
    found = features["trained"]
    np.testing.assert_allclose(found.view_embeddings[row], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.embeddings[row], expected.mean(axis=0), rtol=1e-3, atol=1e-5)
    assert found.labels[row] == rows[11].label
    assert found.groups[row] == f"group {rows[11].group}"
    assert set(found.splits) == {"train", "test"}
    assert found.names[row] == rows[11].uri


def test_a_second_evaluation_reads_no_video_and_has_the_same_results(run, rows, tmp_path):
    first = read_results(evaluate(make_config(run)))
    features = run / "evaluation" / "features.npz"
    made = features.stat().st_mtime_ns
    folder = Path(rows[0].uri).parent.parent
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        second = read_results(evaluate(make_config(run)))
        assert features.stat().st_mtime_ns == made
        assert second == first
        evaluate(make_config(run, knn_k=3))  # evaluator settings do not change the features
        for other in (
            make_config(run, force=True),
            make_config(run, views=2),
            make_config(run, seed=1),
        ):
            with pytest.raises(Exception, match="mp4"):
                evaluate(other)
    finally:
        hidden.rename(folder)


def test_the_number_of_workers_changes_no_result(run, finished):
    with_worker = read_results(evaluate(make_config(run, workers=1)))
    alone = read_results(finished / "evaluation" / "results.json")
    for one, other in zip(with_worker["results"], alone["results"], strict=True):
        assert (one["encoder"], one["metric"]) == (other["encoder"], other["metric"])
        assert one["value"] == (other["value"] and pytest.approx(other["value"], rel=1e-4))


def test_without_labels_the_other_metrics_are_measured_and_it_is_noted(tmp_path, rows):
    run = make_run(tmp_path, [replace(row, label=None) for row in rows])
    found = read_results(evaluate(make_config(run)))
    metrics = {result["metric"] for result in found["results"]}
    assert "knn_accuracy" not in metrics
    assert {"same_video_cosine", "effective_rank", "forecast_mse"} <= metrics
    assert any("no video has a label" in note for note in found["protocol"]["notes"])


def test_short_videos_are_left_out_and_counted(tmp_path, rows):
    short = [replace(row, duration=0.1) if i % 9 == 0 else row for i, row in enumerate(rows)]
    found = read_results(evaluate(make_config(make_run(tmp_path, short))))
    assert found["protocol"]["train_videos"] + found["protocol"]["test_videos"] == 80 - 9
    assert "left out: 9" in found["protocol"]["notes"][0]


def test_every_protocol_names_shared_groups(tmp_path, rows):
    leaking = [replace(row, split="test" if i % 5 == 0 else "train") for i, row in enumerate(rows)]
    found = read_results(evaluate(make_config(make_run(tmp_path, leaking))))
    assert found["protocol"]["split"] == "manifest-split-shared-groups"
    assert all(
        result["protocol"].endswith("manifest-split-shared-groups") for result in found["results"]
    )
    assert "in both train and test: 10" in found["protocol"]["notes"][0]


def test_a_split_without_a_long_enough_video_is_an_error(tmp_path, rows):
    splits = ["test" if i < 8 else "train" for i in range(len(rows))]
    short = [
        replace(row, split=split, duration=0.1 if split == "test" else row.duration)
        for row, split in zip(rows, splits, strict=True)
    ]
    with pytest.raises(UserError, match="no test video is long enough"):
        evaluate(make_config(make_run(tmp_path, short)))


def test_one_view_is_an_error(run):
    with pytest.raises(UserError, match="views=1"):
        evaluate(make_config(run, views=1))


def test_the_printed_table_has_a_row_per_metric_and_a_column_per_encoder(finished):
    found = read_results(finished / "evaluation" / "results.json")["results"]
    printed = rich_table(found)
    assert [str(column.header) for column in printed.columns[1:5]] == ENCODERS
    assert printed.row_count >= len({result["metric"] for result in found})


def test_a_narrow_terminal_truncates_no_metric_name(finished):
    found = read_results(finished / "evaluation" / "results.json")["results"]
    out = StringIO()
    Console(width=80, file=out).print(rich_table(found))
    lines = out.getvalue().splitlines()
    names = " ".join(" ".join(line.split("│")[0] for line in lines if "│" in line).split())
    assert all(find_metric(result["metric"]).label in names for result in found)
    assert max(map(len, lines)) <= 80
