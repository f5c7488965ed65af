"""Samples per second from video files, on one core: python -m benchmarks.loader

Each way reads the same frames of the same files and cuts the same crop of them; the ways take turns
sample by sample, and their time on the processor is compared. The files are written first: XviD in
AVI, H.264 as x264 writes it by default, and a minute of 720p.

    decord      opens the file, one get_batch of the frames, then crop and resize: as V-JEPA 2 loads
    torchcodec  the same with its get_frames_at, if it is installed and finds FFmpeg's libraries
    MoFore      the row of a manifest, as a worker reads it in training

`--memory N` reads N samples with decord and with MoFore, in separate processes, and prints the
memory of each process ten times.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.processes import read_status, run_json
from mofore.data.decode import open_video, read_views
from mofore.data.manifest import Video
from mofore.data.synthetic import paint_texture
from mofore.data.verify import verify_video
from mofore.data.views import AugmentConfig, Crop, crop_and_resize, draw_crop
from mofore.data.windows import GapConfig, draw_windows


class Kind(NamedTuple):
    """A kind of file: frame size, codec and length, and the clips that are read from it."""

    name: str
    width: int
    height: int
    seconds: int
    codec: str
    options: dict[str, str]
    size: int = 224  # of a view, in pixels
    frames: int = 16  # of a clip, at 12 per second


FPS, CLIP_FPS = 30, 12.0
KINDS = (
    Kind("XviD in AVI, 320 x 240, 10 s", 320, 240, 10, "mpeg4", {"bf": "2", "g": "250"}, 128),
    Kind("H.264, 456 x 256, 10 s", 456, 256, 10, "libx264", {"preset": "medium"}),
    Kind("H.264, 1280 x 720, 60 s", 1280, 720, 60, "libx264", {"preset": "veryfast"}),
)
MEMORY_KIND = Kind("H.264, 640 x 480, 10 s", 640, 480, 10, "libx264", {"preset": "veryfast"})
Way = Callable[[Video, np.ndarray, Crop, int], Tensor]


def write_file(kind: Kind, folder: Path) -> Video:
    """A window that slides over a texture with grain, beside a square that moves on its own."""
    rng = np.random.default_rng(0)
    height, width = kind.height, kind.width
    texture = F.interpolate(paint_texture(0, 0)[None], size=(2 * height, 2 * width))[0]
    image = (255 * texture).permute(1, 2, 0).numpy().astype(np.int16)
    grain = rng.integers(-6, 7, (4, height, width, 3), dtype=np.int16)
    path = folder / f"{kind.codec}-{width}.{'avi' if kind.codec == 'mpeg4' else 'mp4'}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(kind.codec, rate=FPS, options=kind.options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(FPS * kind.seconds):
            top, left = (
                int(side * (0.5 + 0.5 * np.sin(number / 40 + phase)))
                for side, phase in ((height, 0), (width, 1))
            )
            frame = image[top : top + height, left : left + width] + grain[number % 4]
            x = int((width - 50) * (0.5 + 0.5 * np.sin(number / 11)))
            frame[height // 3 : height // 3 + 50, x : x + 50] = number % 200
            picture = np.clip(frame, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return verify_video(str(path)).video


def with_mofore(video: Video, indices: np.ndarray, crop: Crop, size: int) -> Tensor:
    with open_video(video) as reader:
        return read_views(reader, indices, partial(crop_and_resize, crop=crop, size=size))


def with_decord(video: Video, indices: np.ndarray, crop: Crop, size: int) -> Tensor:
    frames = decord.VideoReader(video.uri, num_threads=1).get_batch(indices).asnumpy()
    return crop_and_resize(frames, crop, size)


def with_torchcodec(video: Video, indices: np.ndarray, crop: Crop, size: int) -> Tensor:
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(video.uri, num_ffmpeg_threads=1, dimension_order="NHWC")
    frames = decoder.get_frames_at(indices=indices.tolist()).data.numpy()
    return crop_and_resize(frames, crop, size)


def find_ways() -> dict[str, Way]:
    ways: dict[str, Way] = {"MoFore": with_mofore, "decord": with_decord}
    try:
        importlib.import_module("torchcodec.decoders")
        ways["torchcodec"] = with_torchcodec
    except (ImportError, RuntimeError, OSError):
        print("torchcodec is not measured: it is not installed, or finds no FFmpeg libraries.")
    return ways


def draw(rng: np.random.Generator, kind: Kind, video: Video) -> tuple[np.ndarray, Crop]:
    """Frames of a context and a target, in the order of their times, and a crop."""
    times = video.frame_index().times
    clip = (kind.frames, CLIP_FPS, 1, GapConfig())
    windows = draw_windows(rng, times, video.duration, *clip)
    indices = np.concatenate([windows.context, windows.targets.ravel()])
    return indices, draw_crop(rng, video.height, video.width, AugmentConfig())


def compare(kind: Kind, folder: Path, samples: int) -> None:
    """Print a line per way: samples per second of processor time, relative to decord."""
    video, rng = write_file(kind, folder), np.random.default_rng(0)
    ways = find_ways()
    seconds, wrong = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)
    for number in tqdm(range(samples + 1), kind.name, dynamic_ncols=True):
        indices, crop = draw(rng, kind, video)
        views = {}
        for name, way in ways.items():
            start = time.process_time()
            views[name] = way(video, indices, crop, kind.size)
            if number:  # the first one loads code
                seconds[name] += time.process_time() - start
                # Decoders may round differently; another frame differs by far more.
                difference = (views[name].int() - views["MoFore"].int()).abs().float().mean()
                wrong[name] += bool(difference > 1)
    print(f"{kind.name}, 2 x {kind.frames} frames of {kind.size} pixels, {samples} samples")
    print(f"{'':12} {'samples/s':>9} {'ratio':>6}  samples with other frames than FFmpeg's")
    for name in ways:
        rate, ratio = samples / seconds[name], seconds["decord"] / seconds[name]
        print(f"{name:12} {rate:9.2f} {ratio:6.2f}  {wrong[name]}")
    print()


def measure_memory(way: str, samples: int) -> None:
    """Print the memory of this process, in MiB, ten times while it reads."""
    read = find_ways()[way]
    with tempfile.TemporaryDirectory() as folder:
        video, rng = write_file(MEMORY_KIND, Path(folder)), np.random.default_rng(0)
        found = []
        for number in tqdm(range(samples), way, dynamic_ncols=True):
            read(video, *draw(rng, MEMORY_KIND, video), MEMORY_KIND.size)
            if (number + 1) % max(1, samples // 10) == 0:
                found.append(round(read_status("VmRSS") / 2**20))
    print(json.dumps({"mib": found}))


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.loader",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=40, help="of each kind (default: 40)")
    parser.add_argument("--memory", type=int, metavar="N", help="samples; prints memory instead")
    parser.add_argument("--way", choices=["decord", "MoFore"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    decord.logging.set_level(decord.logging.QUIET)
    if options.way:
        measure_memory(options.way, options.memory)
    elif options.memory:
        for way in ("decord", "MoFore"):
            argv = ["--memory", str(options.memory), "--way", way]
            values = run_json("benchmarks.loader", *argv)["mib"]
            print(f"{way:12} MiB after each tenth of {options.memory} samples: {values}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            for kind in KINDS:
                compare(kind, Path(folder), options.samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
