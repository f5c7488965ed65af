"""Cached embeddings and the videos themselves in, moving thumbnails of queries and their neighbours out.

`choose_queries` picks rows by a rule that knows nothing of the outcome, `neighbours` ranks the train part by
cosine, `thumbnail` decodes a few frames and encodes them as an animated WebP in a data URI, with a still image
for readers who ask for less motion. `gallery` puts the three together.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from evaluation.features import nearest
from mofore.data.decode import frame_times, open_video, read_frames
from mofore.data.manifest import Video

QUERIES = 8
NEIGHBOURS = 5
SIDE = 128  # pixels of the longer side of a thumbnail
FRAMES = 12
SECONDS = 3.0  # shown at most, from the middle of the video
QUALITY = 45  # of WebP: with 48 thumbnails the whole page stays at about 2 MB


@dataclass(frozen=True, slots=True)
class Embedded:
    """What features.npz says of the N embedded videos under one encoder.

    embeddings: f32 [N, D]; rows: i64 [N] rows of the manifest; names, labels, groups, parts: str [N] ("" unknown).
    """

    embeddings: np.ndarray
    rows: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    parts: np.ndarray

    @property
    def test(self) -> np.ndarray:
        """Rows (i64) of the test part; all rows where nothing was split."""
        chosen = np.flatnonzero(self.parts == "test")
        return chosen if len(chosen) else np.arange(len(self.parts))

    @property
    def labelled(self) -> bool:
        """Whether any video has a class."""
        return bool((self.labels != "").any())


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Data URIs of an animated WebP and of its middle frame, and their size in pixels."""

    moving: str
    still: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Shown:
    """One video of the gallery. right: of the query's class or not, None where either class is unknown."""

    name: str
    label: str
    thumbnail: Thumbnail
    cosine: float | None = None
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Gallery:
    """Rows of the gallery: a query and its neighbours, nearest first.

    bank: among which videos the neighbours were looked for, rule: how the queries were chosen, both in words.
    """

    rows: tuple[tuple[Shown, tuple[Shown, ...]], ...]
    bank: str
    rule: str


def choose_queries(embedded: Embedded, count: int = QUERIES) -> tuple[np.ndarray, str]:
    """Positions (i64, at most `count`) among the embedded videos, and the rule in words.

    Classes evenly spread over the alphabet, of each its first test video in the manifest, then its second.
    """
    test = embedded.test
    if not embedded.labelled:
        spread = np.unique(np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int))
        return test[spread], f"{len(spread)} videos, evenly spread over the manifest"
    known = test[embedded.labels[test] != ""]
    classes = np.unique(embedded.labels[known])
    spread = np.unique(np.linspace(0, len(classes) - 1, min(count, len(classes))).round().astype(int))
    queues = [list(known[embedded.labels[known] == label]) for label in classes[spread]]
    turns = [(turn, place) for place, queue in enumerate(queues) for turn in range(len(queue))]
    chosen = sorted(sorted(turns)[:count], key=lambda pair: (pair[1], pair[0]))
    rule = (
        f"{len(spread)} of {len(classes)} classes, evenly spread over the alphabet; "
        "of each the first videos in the manifest's order"
    )
    return np.array([queues[place][turn] for turn, place in chosen], dtype=int), rule


def neighbours(embedded: Embedded, query: int, count: int = NEIGHBOURS) -> list[tuple[int, float]]:
    """The nearest train videos of one video as (position, cosine), nearest first.

    Where nothing was split, all videos of other source groups.
    """
    bank = np.flatnonzero(embedded.parts == "train")
    if not len(bank):
        bank = np.flatnonzero(embedded.groups != embedded.groups[query])
        bank = bank[bank != query]
    if not len(bank):
        return []
    cosines, places = nearest(embedded.embeddings[[query]], embedded.embeddings[bank], min(count, len(bank)))
    return [(int(bank[place]), float(cosine)) for place, cosine in zip(places[0], cosines[0], strict=True)]


def thumbnail(video: Video) -> Thumbnail:
    """Up to FRAMES frames from the middle SECONDS of a video, played at the speed they were filmed at."""
    reader = open_video(video)
    times = frame_times(reader)
    period = times[-1] / max(1, len(times) - 1)
    length = min(SECONDS, times[-1] + period)
    begin = (times[-1] + period - length) / 2
    moments = begin + (np.arange(FRAMES) + 0.5) * length / FRAMES
    indices = np.unique(np.abs(times[None] - moments[:, None]).argmin(axis=1))
    images = [Image.fromarray(frame) for frame in read_frames(reader, indices)]
    for image in images:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    pause = max(20, round(1000 * length / len(images)))
    return Thumbnail(
        moving=_webp(images, pause), still=_webp([images[len(images) // 2]], pause), width=images[0].width,
        height=images[0].height,
    )  # fmt: skip


def gallery(embedded: Embedded, videos: Sequence[Video]) -> Gallery:
    """Queries beside their neighbours. videos: all rows of the manifest."""
    queries, rule = choose_queries(embedded)
    found = {int(query): neighbours(embedded, int(query)) for query in queries}
    wanted = sorted({*found, *(row for near in found.values() for row, _ in near)})
    thumbnails = {
        row: thumbnail(videos[int(embedded.rows[row])])
        for row in tqdm(wanted, "thumbnails", leave=False, disable=None)
    }

    def shown(row: int, query: int | None = None, cosine: float | None = None) -> Shown:
        label, right = str(embedded.labels[row]), None
        if query is not None and label and embedded.labels[query]:
            right = bool(label == embedded.labels[query])
        return Shown(
            "/".join(str(embedded.names[row]).split("/")[-2:]), label, thumbnails[row], cosine, right
        )

    rows = tuple(
        (shown(query), tuple(shown(row, query, cosine) for row, cosine in near))
        for query, near in found.items()
    )
    split = (embedded.parts == "train").any()
    bank = (
        "Test videos and their nearest train videos"
        if split
        else "Videos and their nearest of other source groups"
    )
    return Gallery(rows, bank, rule)


def _webp(images: Sequence[Image.Image], pause: int) -> str:
    out = io.BytesIO()
    images[0].save(
        out,
        "WEBP",
        quality=QUALITY,
        method=4,
        save_all=len(images) > 1,
        append_images=images[1:],
        duration=pause,
        loop=0,
    )
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
