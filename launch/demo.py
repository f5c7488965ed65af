"""`mofore demo`: the whole pipeline on small generated videos.

videos -> manifest -> run -> results -> report. A step that is done is skipped or resumed, so a
second call continues where the first was stopped.
"""

from pathlib import Path

import torch

from mofore.config import PretrainConfig, compose
from mofore.data.prepare import prepare
from mofore.data.synthetic import write_motion_videos
from mofore.errors import EXIT_RESUMABLE
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.console import print_results
from mofore.evaluation.evaluate import evaluate
from mofore.evaluation.report import write_report
from mofore.quoting import to_override
from mofore.train import train

TEXTURES = 60


def demo(out: Path, overrides: list[str]) -> int:
    """Write everything below the folder `out`; returns the exit code."""
    videos, manifest, run = out / "videos", out / "data/manifest.parquet", out / "run"
    print(f"1/5 videos: eight motions of {TEXTURES} textures; the label is the motion", flush=True)
    write_motion_videos(videos, TEXTURES)
    print("2/5 manifest", flush=True)
    if not manifest.exists():
        lists = [str(videos / "trainlist01.txt"), str(videos / "testlist01.txt")]
        prepare(videos, manifest.parent, splits=lists, groups=str(videos / "groups.tsv"))
    print("3/5 pretraining without labels, on the train split", flush=True)
    # a second thread does not speed up so small a model, and the decoding workers need the core
    torch.set_num_threads(1)
    fixed = [to_override("data.manifest", str(manifest)), to_override("run_dir", str(run))]
    outcome = train(compose(PretrainConfig, ["experiment=demo", *fixed, *overrides]))
    if outcome.stopped_by:
        print(f"stopped by {outcome.stopped_by} at step {outcome.step}")
        print("Rerun the same command to resume.")
        return EXIT_RESUMABLE
    print("4/5 evaluation: trained, untrained, pixels and frame differences", flush=True)
    results = evaluate(compose(EvaluateConfig, [to_override("run", str(run))]))
    print_results(results)
    print("5/5 report", flush=True)
    report = write_report(run)
    paths = {"videos": videos, "manifest": manifest, "run": run, "results": results}
    for name, path in (paths | {"report": report}).items():
        print(f"{name:9} {path}")
    return 0
