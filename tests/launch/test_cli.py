"""The command line: the whole pipeline on a few small videos, and mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mofore
from mofore.errors import UserError
from mofore.launch.cli import main
from mofore.run_folder import load_teacher
from tests.ranks import REPOSITORY
from tests.small import SMALL

MOFORE = "mofore.launch.cli"


def command(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, argv)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def mofore_output(*argv: str | Path) -> str:
    """stdout and stderr of a `mofore` command, which must succeed."""
    ran = command(MOFORE, *argv)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def pipeline(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prepare -> pretrain -> evaluate -> report -> export, below one folder."""
    root = tmp_path_factory.mktemp("a pipeline")
    lists = [motion_videos / "trainlist01.txt", motion_videos / "testlist01.txt"]
    groups = ["--groups", motion_videos / "groups.tsv"]
    fixed = ["--out", root / "data", "--workers", "1"]
    output = mofore_output("prepare", motion_videos, *fixed, *groups, "--split", *lists)
    assert "40 videos" in output
    assert "0 refused" in output
    manifest = f"data.manifest={root / 'data/manifest.parquet'}"
    run = root / "run"
    output = mofore_output("pretrain", *SMALL, manifest, f"run_dir={run}", "workers=1")
    assert f"Done: {run}" in output
    mofore_output("evaluate", run, "workers=1", "bootstrap_resamples=50", "knn_k=5")
    mofore_output("report", run)
    mofore_output("export", run, root / "encoder")
    return root


def test_pipeline_writes_its_results(pipeline: Path) -> None:
    results = json.loads((pipeline / "run/evaluation/results.json").read_text())
    assert {each["encoder"] for each in results["results"]} == {
        "trained",
        "untrained",
        "pixels",
        "frame differences",
    }
    named = {each["metric"] for each in results["results"]}
    assert {
        "knn_accuracy",
        "linear_probe_accuracy",
        "retrieval_r1",
        "forecast_mse",
        "effective_rank",
    } <= named
    assert (pipeline / "run/report.html").stat().st_size > 10_000
    assert (pipeline / "data/refused.csv").read_text().strip() == "uri,reason"


def test_exported_encoder_is_the_teacher(pipeline: Path) -> None:
    encoder = mofore.load_encoder(pipeline / "encoder")
    teacher, config, _ = load_teacher(pipeline / "run")
    assert (encoder.frames, encoder.size) == (config.data.frames, config.data.size)
    shape = (2, 3, encoder.frames, encoder.size, encoder.size)
    clips = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(encoder.embed(clips), teacher.embed(clips))
    (pipeline / "encoder/encoder.safetensors").rename(pipeline / "encoder/gone")
    with pytest.raises(UserError, match="mofore export RUN"):
        mofore.load_encoder(pipeline / "encoder")
    (pipeline / "encoder/gone").rename(pipeline / "encoder/encoder.safetensors")


def test_missing_video_is_named(pipeline: Path, motion_videos: Path) -> None:
    """A worker finds it; the message arrives without the worker's traceback."""
    video = motion_videos / "left/texture01.mp4"
    video.rename(video.with_suffix(".gone"))
    try:
        ran = command(
            MOFORE,
            "pretrain",
            *SMALL,
            f"data.manifest={pipeline / 'data/manifest.parquet'}",
            f"run_dir={pipeline / 'vanished'}",
            "workers=1",
            "global_batch=40",
            "micro_batch=4",
        )
    finally:
        video.with_suffix(".gone").rename(video)
    assert ran.returncode == 2
    assert "texture01.mp4 no longer decodes: no such file" in ran.stderr
    assert "Traceback" not in ran.stderr


MISTAKES = {
    "no root": (["prepare", "/nowhere", "--out", "OUT"], "/nowhere"),
    "unknown key": (["pretrain", "data.manifest=x", "stepz=3"], "stepz"),
    "wrong type": (["pretrain", "data.manifest=x", "steps=many"], "steps"),
    "no manifest key": (["pretrain"], "data.manifest"),
    "no manifest": (["pretrain", "data.manifest=nowhere.parquet"], "nowhere.parquet"),
    "patch": (["pretrain", "data.manifest=x", "backbone.patch_size=15"], "backbone.patch_size"),
    "no run": (["evaluate", "nowhere"], "nowhere"),
    "run given twice": (["evaluate", "nowhere", "run=elsewhere"], "run=elsewhere"),
    "no run to report": (["report", "nowhere"], "nowhere"),
    "no run to export": (["export", "nowhere", "OUT"], "nowhere"),
    "no run to compare": (["compare", "nowhere"], "nowhere"),
    "no run to follow": (["logs", "nowhere"], "nowhere"),
    "no run to cancel": (["cancel", "nowhere"], "nowhere"),
    "no run to resume": (["resume", "nowhere"], "nowhere"),
    "no runs": (["jobs", "nowhere"], "nowhere"),
    "no folder of configurations": (["config", "--config-dir", "nowhere"], "nowhere"),
    "unknown key of config": (["config", "data.gap.mim=3"], "Did you mean data.gap.min"),
    "unknown key of submit": (["submit", "cluster.gpus=8"], "cluster.gpus"),
    "task as a key": (["submit", "task=evaluate", "runs/a"], "write the task first"),
    "unknown task": (["submit", "dream"], "pretrain, evaluate, prepare"),
    "sweep of evaluations": (["submit", "evaluate", "runs/a", "--multirun"], "evaluate"),
    "no sweep": (["submit", "sweep=nowhere"], "sizes"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_message(
    mistake: str, tmp_path: Path, environment: None, capsys: pytest.CaptureFixture
) -> None:
    argv, named = MISTAKES[mistake]
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in argv]) == 2
    captured = capsys.readouterr()
    assert named in captured.err
    logged = re.compile(r"\S+ \S+ ERROR +\[rank 0\] ")  # a rank's form
    assert captured.err.startswith("mofore: error: ") or logged.match(captured.err)
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submit(cluster: str, manifest: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = [f"cluster={cluster}", *SMALL, f"data.manifest={manifest}", f"run_dir={run}"]
    ran = subprocess.run(
        [sys.executable, "launch/submit.py", *keys],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list((run / "checkpoints").glob("step-*"))


def test_submit_names_an_unknown_cluster() -> None:
    ran = command("mofore.launch.submit", "cluster=nowhere", "data.manifest=x")
    assert ran.returncode == 2
    assert "nowhere" in ran.stderr
    assert "Traceback" not in ran.stderr
