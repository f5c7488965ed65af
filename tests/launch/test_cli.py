"""The command line as a user meets it: the whole way on a few small videos, and mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mofore
from mofore.errors import UserError
from mofore.launch.cli import main
from mofore.run_folder import load_teacher
from tests.small import SMALL

REPOSITORY = Path(__file__).parent.parent


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def done(*words: str | Path) -> str:
    """What a command printed; it must succeed."""
    ran = command(*words)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def whole_way(motion_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """prepare -> pretrain -> evaluate -> report -> export, below one folder."""
    root = tmp_path_factory.mktemp("whole way")
    lists = [motion_videos / "trainlist01.txt", motion_videos / "testlist01.txt"]
    said = done(
        "mofore.launch.cli",
        "prepare",
        motion_videos,
        "--out",
        root / "data",
        "--groups",
        motion_videos / "groups.tsv",
        "--workers",
        "1",
        "--split",
        *lists,
    )
    assert "40 videos" in said
    assert "0 refused" in said
    manifest = f"data.manifest={root / 'data/manifest.parquet'}"
    said = done(
        "mofore.launch.cli", "pretrain", *SMALL, manifest, f"run_dir={root / 'run'}", "workers=1"
    )
    assert "done" in said
    done(
        "mofore.launch.cli",
        "evaluate",
        f"run={root / 'run'}",
        "workers=1",
        "bootstrap_resamples=50",
        "knn_k=5",
    )
    done("mofore.launch.cli", "report", f"run={root / 'run'}")
    done("mofore.launch.cli", "export", f"run={root / 'run'}", "--out", root / "encoder")
    return root


def test_whole_way_leaves_what_it_names(whole_way: Path) -> None:
    results = json.loads((whole_way / "run/evaluation/results.json").read_text())
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
    assert (whole_way / "run/report.html").stat().st_size > 10_000
    assert (whole_way / "data/refused.csv").read_text().strip() == "uri,reason"


def test_exported_encoder_is_the_teacher(whole_way: Path) -> None:
    encoder = mofore.load_encoder(whole_way / "encoder")
    teacher, config, _ = load_teacher(whole_way / "run")
    assert (encoder.frames, encoder.size) == (config.data.frames, config.data.size)
    shape = (2, 3, encoder.frames, encoder.size, encoder.size)
    clips = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(encoder.embed(clips), teacher.embed(clips))
    (whole_way / "encoder/encoder.safetensors").rename(whole_way / "encoder/gone")
    with pytest.raises(UserError, match="mofore export RUN"):
        mofore.load_encoder(whole_way / "encoder")
    (whole_way / "encoder/gone").rename(whole_way / "encoder/encoder.safetensors")


def test_video_that_vanished_is_named(whole_way: Path, motion_videos: Path) -> None:
    """Workers meet it; the message arrives without their traceback."""
    video = motion_videos / "left/texture01.mp4"
    video.rename(video.with_suffix(".gone"))
    try:
        ran = command(
            "mofore.launch.cli",
            "pretrain",
            *SMALL,
            f"data.manifest={whole_way / 'data/manifest.parquet'}",
            f"run_dir={whole_way / 'vanished'}",
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
    "no run": (["evaluate", "run=nowhere"], "nowhere"),
    "no run to report": (["report", "run=nowhere"], "nowhere"),
    "no run to export": (["export", "run=nowhere", "--out", "OUT"], "nowhere"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_message(
    mistake: str, tmp_path: Path, environment: None, capsys: pytest.CaptureFixture
) -> None:
    words, named = MISTAKES[mistake]
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in words]) == 2
    said = capsys.readouterr()
    assert named in said.err
    assert said.err.startswith("mofore: ")
    assert "Traceback" not in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["prepare", "pretrain", "evaluate", "report", "export", "demo"])
def test_help(name: str) -> None:
    assert "usage" in done("mofore.launch.cli", name, "--help") or name in ("pretrain", "evaluate")


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submit(cluster: str, manifest: Path, tmp_path: Path) -> None:
    words = [
        f"cluster={cluster}",
        *SMALL,
        f"data.manifest={manifest}",
        f"run_dir={tmp_path / 'run'}",
    ]
    ran = subprocess.run(
        [sys.executable, "launch/submit.py", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert list((tmp_path / "run/checkpoints").glob("step-*"))


def test_submit_names_an_unknown_cluster() -> None:
    ran = command("mofore.launch.submit", "cluster=nowhere", "data.manifest=x")
    assert ran.returncode == 2
    assert "nowhere" in ran.stderr
    assert "Traceback" not in ran.stderr
