"""`mofore data views KEY=VALUE ...`: the first clips of a run, as the model will see them."""

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from mofore.config import PretrainConfig, flatten_dict, to_plain_dict
from mofore.data.dataset import PretrainClips, collate, usable_rows
from mofore.data.manifest import Manifest, read_manifest
from mofore.data.order import RankSampler
from mofore.data.views import apply_jitter
from mofore.errors import UserError
from mofore.evaluation.page import render_page
from mofore.files import replace_file, write_text
from mofore.launch.data_show import to_data_uri
from mofore.types import Batch

TEMPLATE = Path(__file__).parent / "data_views.html.jinja"
FORMATS = (".html", ".png")
FRAMES_IN_A_ROW = 16
SIDE, MAX_SIDE = 128, 160  # pixels, up to which a frame is enlarged or reduced
SPACE = 2  # pixels between frames
MARGIN, LINE, FONT_SIZE = 16, 20, 14  # pixels, of the PNG


class Clip(NamedTuple):
    """caption: context, or the gap of a target. frames: all of them, as one image (RGBA)."""

    caption: str
    frames: Image.Image


class ViewedSample(NamedTuple):
    """What the model sees of a video in one step."""

    step: int
    row: int  # of the manifest
    uri: str
    clips: list[Clip]


def write_views(config: PretrainConfig, out: Path, count: int) -> None:
    """Write the first `count` samples of a run with this configuration, as HTML or PNG.

    Raises UserError for another suffix than .html or .png, and for what a run refuses.
    """
    if out.suffix not in FORMATS:
        raise UserError(f"--out {out}: the name must end in {' or '.join(FORMATS)}.")
    manifest = read_manifest(config.data.manifest, config.data.root)
    progress = tqdm(first_batches(config, manifest, count), "samples", count, disable=None)
    samples = [view_sample(manifest, step, batch) for step, batch in progress]
    if out.suffix == ".png":
        with replace_file(out) as temporary:
            draw_sheet(samples).save(temporary, "PNG")
        return
    variables = {
        "samples": samples,
        "config": config,
        "augment": flatten_dict(to_plain_dict(config.data.augment)),
        "uri": to_data_uri,
        "written": datetime.now(UTC),
    }
    write_text(out, render_page(TEMPLATE, variables))


def first_batches(
    config: PretrainConfig, manifest: Manifest, count: int
) -> Iterator[tuple[int, Batch]]:
    """(step, Batch of one video) of a run's first `count` samples, with its random numbers."""
    rows, _ = usable_rows(manifest, config.data, clips=2)
    sampler = RankSampler(len(rows), config.global_batch, 1, config.seed, 0, count, 0, 1)
    dataset = PretrainClips(
        manifest, config.data, rows, config.seed, config.tokens, config.teacher.token_keep_ratio
    )
    for number, (index,) in enumerate(itertools.islice(sampler, count)):
        yield number // config.global_batch, apply_jitter(collate([dataset[index]]))


def view_sample(manifest: Manifest, step: int, batch: Batch) -> ViewedSample:
    row = int(batch.rows)
    clips = [Clip("context", join_frames(batch.context[0]))]
    for target, gap in zip(batch.targets[0], batch.gaps[0].tolist(), strict=True):
        clips.append(Clip(f"target, {gap:.2f} s after the context", join_frames(target)))
    return ViewedSample(step, row, manifest[row].uri, clips)


def join_frames(clip: Tensor) -> Image.Image:
    """Frames of a clip u8 [3, T, H, W] side by side, in rows of FRAMES_IN_A_ROW: RGBA.

    Small frames are enlarged by a whole factor, large ones reduced.
    """
    count, side = clip.shape[1], clip.shape[2]
    enlarged = side * max(1, SIDE // side)
    shown = min(enlarged, MAX_SIDE)
    resample = Image.Resampling.BOX if shown < side else Image.Resampling.NEAREST
    columns, step = min(count, FRAMES_IN_A_ROW), shown + SPACE
    sheet = Image.new("RGBA", (columns * step - SPACE, -(-count // columns) * step - SPACE))
    for number, frame in enumerate(clip.permute(1, 2, 3, 0).numpy()):
        image = Image.fromarray(frame).resize((shown, shown), resample)
        sheet.paste(image, (number % columns * step, number // columns * step))
    return sheet


def draw_sheet(samples: list[ViewedSample]) -> Image.Image:
    """The samples below each other on white, each clip under its caption."""
    parts: list[tuple[str, Image.Image | None]] = []
    for sample in samples:
        parts.append((describe(sample), None))
        parts += sample.clips
    heights = [LINE + (image.height + MARGIN if image else 0) for _, image in parts]
    widths = [image.width for _, image in parts if image]
    size = max(widths) + 2 * MARGIN, sum(heights) + 2 * MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE), MARGIN
    for (caption, image), height in zip(parts, heights, strict=True):
        draw.text((MARGIN, top), caption, "black", font)
        if image:
            sheet.paste(image, (MARGIN, top + LINE), image)
        top += height
    return sheet


def describe(sample: ViewedSample) -> str:
    return f"row {sample.row}, step {sample.step}: {sample.uri}"
