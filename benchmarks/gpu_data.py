"""Parts of benchmarks.gpu: what the loader decodes, and features per second in evaluation."""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.features import feature_rows
from benchmarks.gpu_measure import describe_machine, step_shape, synchronize
from benchmarks.gpu_results import Column, Report
from benchmarks.gpu_speed import default_rate
from benchmarks.training_step import StepShape
from mofore.config import compose
from mofore.data.dataset import usable_rows
from mofore.data.manifest import read_manifest, write_manifest
from mofore.data.synthetic import paint_texture, write_h264
from mofore.data.verify import verify_video
from mofore.evaluation.config import EvaluateConfig
from mofore.parallel.engine import start_ranks
from mofore.startup import load_batches
from mofore.types import Batch

WORKERS = (2, 8, 15)
WIDTH, HEIGHT, FPS = 456, 256, 30  # of the videos that the loader decodes
FRAMES, TINY_FRAMES = 300, 120
FILES, VIDEOS = 8, 64  # drawn and encoded; in the manifest, links to them
# Videos of a batch. A worker fills one batch at a time: small ones come often enough to be counted.
BATCH = 4
SECONDS = 8.0  # counted for each number of workers


def loader(options: argparse.Namespace, report: Report) -> None:
    """Batches that arrive on the device: decoded, cut, copied, jittered; nothing else runs."""
    device = torch.device(options.device)
    shape = step_shape(options)._replace(batch=BATCH)
    report.environment(describe_machine(device) | {"CPUs": joblib.cpu_count()})
    needed, frames = default_rate(options.out), FRAMES if not options.tiny else TINY_FRAMES
    report.note(
        f"videos of {WIDTH} x {HEIGHT}, {FPS} frames per second, {frames / FPS:g} s, H.264; the "
        + (f"step needs {needed:.1f} samples/s" if needed else "step's need: run the part speed")
    )
    report.table(
        Column("workers", "workers", 7, "d"),
        Column("samples_per_second", "samples/s", 9, ".1f"),
        Column("per_worker", "of a worker", 11, ".2f"),
        Column("share", "of the step's need", 18, ".0%"),
        Column("start_seconds", "start s", 7, ".1f"),
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_videos(Path(folder), frames)
        for workers in WORKERS if not options.tiny else (1,):
            seconds = SECONDS if not options.tiny else 0.5
            start, rate = decoding_rate(shape, manifest, workers, device, seconds)
            report.row(
                workers=workers,
                samples_per_second=rate,
                per_worker=rate / workers,
                share=rate / needed if needed else None,
                start_seconds=start,
            )


def write_videos(folder: Path, frames: int) -> Path:
    """Write the files and a manifest of VIDEOS links to them; its path."""

    def write(number: int) -> None:
        write_h264(folder / f"file-{number}.mp4", pan(number, frames), FPS)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(FILES)))
    verified = [verify_video(str(folder / f"file-{number}.mp4")) for number in range(FILES)]
    rows = []
    for number in range(VIDEOS):
        path = folder / f"video-{number}.mp4"
        os.link(folder / f"file-{number % FILES}.mp4", path)
        rows.append(verified[number % FILES].row(str(path)))
    manifest = folder / "manifest.parquet"
    write_manifest(manifest, rows)
    return manifest


def pan(number: int, frames: int) -> np.ndarray:
    """u8 [frames, HEIGHT, WIDTH, 3]: a window that slides over a texture."""
    texture = F.interpolate(paint_texture(number, 0)[None], size=(2 * HEIGHT, 2 * WIDTH))[0]
    image = (255 * texture).to(torch.uint8).permute(1, 2, 0).numpy()
    tops, lefts = (np.linspace(0, side, frames).astype(int) for side in (HEIGHT, WIDTH))
    windows = zip(tops, lefts, strict=True)
    return np.stack([image[top : top + HEIGHT, left : left + WIDTH] for top, left in windows])


def decoding_rate(
    shape: StepShape, manifest_path: Path, workers: int, device: torch.device, seconds: float
) -> tuple[float, float]:
    """(seconds until the first batch, samples per second from then on)."""
    config = shape.config(f"data.manifest={manifest_path}", f"workers={workers}")
    start_ranks(config.engine)
    manifest = read_manifest(str(manifest_path))
    rows, _ = usable_rows(manifest, config.data, clips=2)
    begin = time.perf_counter()
    batches: Iterator[Batch] = load_batches(config, manifest, rows, 0, device)
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(workers):  # every worker's first batch came at about the same time
        next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
    synchronize(device)
    return first, count * shape.batch / (time.perf_counter() - begin)


def features(options: argparse.Namespace, report: Report) -> None:
    """Features per second, by benchmarks.features."""
    shape = step_shape(options)
    report.environment(describe_machine(torch.device(options.device)))
    batch, videos = (shape.batch, 64) if not options.tiny else (2, 16)
    fixed = ["run=none", f"batch_size={batch}", *(["workers=0"] if options.tiny else [])]
    report.note(f"{shape.backbone}, clips of {shape.frames} x {shape.size} x {shape.size}")
    report.table(
        Column("part", "part", 7),
        Column("precision", "precision", 9),
        Column("clips_per_second", "clips/s", 8, ".1f"),
        Column("peak_gib", "peak GiB", 8, ".1f"),
    )
    seconds = 2.0 if not options.tiny else 0.1
    for row in feature_rows(shape.config(), compose(EvaluateConfig, fixed), videos, seconds):
        report.row(**row)
