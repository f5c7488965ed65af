"""Features per second of evaluation: python -m benchmarks.features

model     one encoder on clips that are in the device's memory
copies    as `mofore evaluate` embeds: trained and untrained encoder and both pixel baselines; clips
          come from the host's memory, and features go back to it
videos    the whole extraction from synthetic H.264 files, decoded by workers: both models, both
          baselines, forecasts of the test videos, and the start of the workers: with few videos
          this is a lower bound

A clip counts once, however many encoders embed it. On a GPU the first part runs in fp32, TF32 and
bf16, the others in what `precision=auto` stands for.

    python -m benchmarks.features --backbone vit_large --size 224 --videos 480   # on a GPU
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mofore.config import PretrainConfig, compose
from mofore.data.loader import resolve_workers
from mofore.data.manifest import Row, read_annotations, read_manifest, write_manifest
from mofore.data.synthetic import MOTIONS, motion_video, single_thread, write_h264
from mofore.data.verify import Verified, verify_video
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.encoders import embed_all, frame_differences, pixels
from mofore.evaluation.extraction import extract_features, untrained_model
from mofore.evaluation.splits import choose_split, video_names
from mofore.models.encoder import VideoEncoder
from mofore.precision import Precision, autocast, resolve_precision, set_matmul_precision

FPS = 24  # of the synthetic videos
COPIED_BATCHES = 4  # in the host's memory, embedded again and again


def feature_rows(
    config: PretrainConfig, evaluation: EvaluateConfig, videos: int, seconds: float = 2.0
) -> Iterator[dict[str, Any]]:
    """A row for each measurement, as soon as it is done.

    config: backbone and clip. evaluation: views, batch size, workers. videos: synthetic files of
    the last part, at least 16; a worker decodes a batch at a time, so give several batches per
    worker. seconds: each measurement of the first two parts repeats for at least that long.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto = resolve_precision(Precision.auto, device)
    precisions = {Precision.fp32, auto} | ({Precision.tf32} if device.type == "cuda" else set())
    model = untrained_model(config).to(device)
    batch, views, data = evaluation.batch_size, evaluation.views, config.data
    clip = (3, data.frames, data.size, data.size)

    clips = torch.randint(0, 256, (batch, *clip), dtype=torch.uint8, device=device)
    for precision in sorted(precisions, key=[*Precision].index):
        set_matmul_precision(precision)
        embed = functools.partial(_embed, model.teacher, clips, precision)
        rate = time_clips(embed, batch, seconds)
        yield _row("model", precision, rate, device)

    set_matmul_precision(auto)
    encoders = {"trained": model.teacher.embed, "untrained": model.teacher.embed}
    encoders |= {"pixels": pixels, "frame differences": frame_differences}
    host = torch.randint(0, 256, (batch, views, *clip), dtype=torch.uint8)
    host = host.pin_memory() if device.type == "cuda" else host
    batches = [(host, torch.arange(batch))] * COPIED_BATCHES
    rate = time_clips(
        lambda: embed_all(encoders, batches, device, auto), COPIED_BATCHES * batch * views, seconds
    )
    yield _row("copies", auto, rate, device)

    with tempfile.TemporaryDirectory() as folder:
        manifest_path = Path(folder, "manifest.parquet")
        write_manifest(manifest_path, write_videos(Path(folder), videos, config))
        manifest = read_manifest(str(manifest_path))
        split = choose_split(video_names(manifest), read_annotations(manifest.path))
        start = time.perf_counter()
        extract_features(evaluation, config, model, manifest, split, device, auto)
        spent = time.perf_counter() - start
    workers = resolve_workers(evaluation.workers, device.type)
    row = _row("videos", auto, videos * views / spent, device)
    yield row | {"workers": workers, "seconds": spent}


def time_clips(work: Callable[[], object], clips: int, seconds: float) -> float:
    """Clips per second of `work`, which embeds so many, after one call to warm up."""
    work()
    _synchronise()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        _synchronise()  # per call, or the host would queue work far ahead
        calls += 1
    return calls * clips / (time.perf_counter() - start)


@torch.inference_mode()
def _embed(encoder: VideoEncoder, clips: Tensor, precision: Precision) -> Tensor:
    with autocast(precision, clips.device):
        return encoder.embed(clips)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(part: str, precision: Precision, rate: float, device: torch.device) -> dict[str, Any]:
    """peak_gib: of the GPU's memory since the row before; None on a CPU."""
    peak = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    return {
        "part": part,
        "precision": precision.value,
        "clips_per_second": rate,
        "peak_gib": peak,
    }


@single_thread()
def write_videos(folder: Path, videos: int, config: PretrainConfig) -> list[Row]:
    """Write `videos` files, 2.5 times as long as a clip; the rows of a manifest.

    Eight files are drawn and encoded, the others are links to them: what is decoded is the same.
    """
    data = config.data
    frames, size = round(2.5 * FPS * data.frames / data.fps), data.size
    rows: list[Row] = []
    verified: dict[str, Verified] = {}
    for video in range(videos):
        number, motion = video // len(MOTIONS), MOTIONS[video % len(MOTIONS)]
        path = folder / f"{motion}-{number}.mp4"
        if number:
            os.link(folder / f"{motion}-0.mp4", path)
        else:
            write_h264(path, motion_video(motion, 0, frames=frames, size=size, fps=FPS), FPS)
            verified[motion] = verify_video(str(path))
        rows.append(verified[motion].row(str(path), label=motion, group=f"group {number}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backbone", default="vit_small", help="default: vit_small")
    parser.add_argument("--frames", type=int, default=16, help="per clip (default: 16)")
    parser.add_argument("--size", type=int, default=112, help="pixels of a side (default: 112)")
    parser.add_argument("--batch", type=int, default=16, help="videos per batch (default: 16)")
    parser.add_argument("--views", type=int, default=4, help="clips per video (default: 4)")
    parser.add_argument("--videos", type=int, default=16, help="synthetic files (default: 16)")
    parser.add_argument("--workers", default="auto", help="default: auto")
    parser.add_argument("--json", action="store_true", help="print one line of JSON, no table")
    options = parser.parse_args()
    shape = (f"backbone={options.backbone}", f"data.frames={options.frames}")
    config = compose(PretrainConfig, [*shape, f"data.size={options.size}", "data.manifest=none"])
    overrides = [f"{key}={getattr(options, key)}" for key in ("views", "workers")]
    evaluation = compose(EvaluateConfig, ["run=none", f"batch_size={options.batch}", *overrides])
    rows = feature_rows(config, evaluation, options.videos)
    if options.json:
        print(json.dumps({"backbone": options.backbone, "rows": list(rows)}))
        return 0
    print(f"{options.backbone}, clips of {options.frames} x {options.size} x {options.size}")
    print("part    precision  clips/s  peak GiB")
    for row in rows:
        peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:8.1f}"
        print(f"{row['part']:8}{row['precision']:9}{row['clips_per_second']:9.1f}  {peak}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
