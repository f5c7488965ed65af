"""The main job, end to end, on videos that it makes: videos -> manifest -> run -> results -> report.

Each part is left alone where it is done, so a second call goes on where the first was stopped.
"""

from pathlib import Path

import torch

from mofore.config import PretrainConfig, compose
from mofore.data.prepare import prepare
from mofore.data.synthetic import write_motion_videos
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.console import show
from mofore.evaluation.evaluate import evaluate
from mofore.evaluation.report import write_report
from mofore.train import train

TEXTURES = 60


def demo(out: Path, keys: list[str]) -> int:
    """Everything below the folder `out`; returns the exit code."""
    videos, data, run = out / "videos", out / "data", out / "run"
    print("1/5 videos: eight motions of sixty textures; the motion is the label", flush=True)
    write_motion_videos(videos, TEXTURES)
    print("2/5 manifest", flush=True)
    if not (data / "manifest.parquet").exists():
        lists = [str(videos / "trainlist01.txt"), str(videos / "testlist01.txt")]
        prepare(videos, data, splits=lists, groups=str(videos / "groups.tsv"))
    print("3/5 pretraining, without labels, on the train split", flush=True)
    torch.set_num_threads(
        1
    )  # a model this small gains nothing from a second, and the decoders need the core
    fixed = ["experiment=demo", f"data.manifest={data / 'manifest.parquet'}", f"run_dir={run}"]
    outcome = train(compose(PretrainConfig, [*fixed, *keys]))
    if outcome.stopped_by:
        print(f"stopped by {outcome.stopped_by} at step {outcome.step}: the same command goes on")
        return 75
    print("4/5 evaluation, beside the untrained encoder, pixels and frame differences", flush=True)
    results = evaluate(compose(EvaluateConfig, [f"run={run}"]))
    show(results)
    print("5/5 report", flush=True)
    report = write_report(run)
    for name, path in {
        "videos": videos,
        "manifest": data / "manifest.parquet",
        "run": run,
        "results": results,
        "report": report,
    }.items():
        print(f"{name:9} {path}")
    return 0
