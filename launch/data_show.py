"""`mofore data show MANIFEST`: one HTML page with statistics, and a frame of some videos."""

import base64
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from mofore.data.decode import open_video, read_frames
from mofore.data.manifest import Manifest, Video, read_manifest
from mofore.data.storage import DecodeError
from mofore.evaluation.page import render_page
from mofore.files import write_text
from mofore.launch.data_statistics import (
    count_refused,
    count_values,
    describe_totals,
    draw_histograms,
    read_columns,
)

TEMPLATE = Path(__file__).parent / "data_show.html.jinja"
SIDE = 240  # pixels, longer side of a frame
QUALITY = 60  # of WebP


class Frame(NamedTuple):
    """The middle frame of a video, as a data URI; or why there is none."""

    row: int
    uri: str
    label: str | None
    seconds: float
    image: str | None
    width: int
    height: int
    reason: str | None


def write_page(path: str, out: Path, count: int, seed: int, root: str | None = None) -> list[Frame]:
    """Write the page of the manifest at `path`; returns the frames that it shows.

    count: videos of which a frame is shown, drawn at random from `seed`. root: as in
    `read_manifest`.

    Raises UserError if there is no manifest.
    """
    manifest = read_manifest(path, root)
    table = read_columns(manifest.path)
    frames = read_sheet(manifest, table, count, seed)
    variables: dict[str, Any] = {
        "name": "/".join(Path(manifest.path).parts[-2:]),
        "manifest": manifest,
        "totals": describe_totals(table),
        "charts": draw_histograms(table),
        "tables": count_values(table),
        "refused": count_refused(manifest.path),
        "frames": frames,
        "seed": seed,
        "written": datetime.now(UTC),
    }
    write_text(out, render_page(TEMPLATE, variables))
    return frames


def read_sheet(manifest: Manifest, table: pa.Table, count: int, seed: int) -> list[Frame]:
    """The middle frames of videos drawn at random, in the manifest's order."""
    drawn = np.random.default_rng(seed).choice(
        len(manifest), min(count, len(manifest)), replace=False, shuffle=False
    )
    rows = np.sort(drawn).tolist()
    labels = table["label"].take(rows).to_pylist()
    progress = tqdm(zip(rows, labels, strict=True), "frames", len(rows), leave=False, disable=None)
    return [read_middle_frame(row, manifest[row], label) for row, label in progress]


def read_middle_frame(row: int, video: Video, label: str | None) -> Frame:
    name = "/".join(video.uri.split("/")[-2:])
    if video.offset is not None:
        name = f"{name}@{video.offset}"
    try:
        with open_video(video) as reader:
            (frame,) = read_frames(reader, [video.frames // 2])
    except DecodeError as error:
        return Frame(row, name, label, video.duration, None, SIDE, SIDE, error.reason)
    image = Image.fromarray(frame)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return Frame(row, name, label, video.duration, to_data_uri(image), *image.size, None)


def to_data_uri(image: Image.Image) -> str:
    """A WebP."""
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
