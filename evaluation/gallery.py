"""Query videos and their nearest neighbours, as animated thumbnails.

Queries are chosen by a rule that does not depend on the results. A thumbnail is an animated WebP in
a data URI, with a still image for readers who prefer reduced motion.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from mofore.data.decode import open_video, read_frames
from mofore.data.manifest import Video
from mofore.evaluation.features import Features, nearest_neighbours

QUERIES = 8
NEIGHBOURS = 5
SIDE = 128  # pixels, longer side of a thumbnail
FRAMES = 12
SECONDS = 3.0  # maximum length of a thumbnail, from the middle of the video
QUALITY = 45  # of WebP: with 48 thumbnails the whole page has about 2 MB


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """Data URIs of an animated WebP and of its middle frame, and their size in pixels."""

    animated: str
    still: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class GalleryVideo:
    """One video of the gallery.

    cosine: similarity to the query, None for the query itself. same_class: whether it has the
    query's class, None if either class is unknown.
    """

    name: str
    label: str
    thumbnail: Thumbnail
    cosine: float | None = None
    same_class: bool | None = None


@dataclass(frozen=True, slots=True)
class Gallery:
    """rows: each query with its neighbours, nearest first. bank, rule: descriptions in words.

    bank: where neighbours are searched. rule: how the queries were chosen.
    """

    rows: tuple[tuple[GalleryVideo, tuple[GalleryVideo, ...]], ...]
    bank: str
    rule: str


def indices_of_test(features: Features) -> np.ndarray:
    """Indices (i64) of the test videos; of all videos if there is no test split."""
    chosen = np.flatnonzero(features.splits == "test")
    return chosen if len(chosen) else np.arange(len(features.splits))


def choose_queries(features: Features, count: int = QUERIES) -> tuple[np.ndarray, str]:
    """Indices (i64) of at most `count` videos, and the rule in words.

    Classes evenly spaced in alphabetical order, and of each its first test video in the manifest,
    then its second. Without labels, test videos evenly spaced in the manifest.
    """
    test = indices_of_test(features)
    if not (features.labels != "").any():
        chosen = _evenly_spaced(test, count)
        return chosen, f"{len(chosen)} videos, evenly spaced in the manifest"
    known = test[features.labels[test] != ""]
    classes = np.unique(features.labels[known])
    shown = _evenly_spaced(classes, count)
    queues = [list(known[features.labels[known] == label]) for label in shown]
    turns = [(turn, number) for number, queue in enumerate(queues) for turn in range(len(queue))]
    chosen_turns = sorted(sorted(turns)[:count], key=lambda pair: (pair[1], pair[0]))
    rule = (
        f"{len(shown)} of {len(classes)} classes, evenly spaced in alphabetical order, "
        "and the first videos of each in the manifest"
    )
    return np.array([queues[number][turn] for turn, number in chosen_turns], dtype=int), rule


def _evenly_spaced(items: np.ndarray, count: int) -> np.ndarray:
    positions = np.linspace(0, len(items) - 1, min(count, len(items)))
    return items[np.unique(positions.round().astype(int))]


def neighbours(features: Features, query: int, count: int = NEIGHBOURS) -> list[tuple[int, float]]:
    """(index, cosine) of the train videos that are nearest to one video, nearest first.

    Without a train split, all videos of other source groups are searched.
    """
    bank = np.flatnonzero(features.splits == "train")
    if not len(bank):
        bank = np.flatnonzero(features.groups != features.groups[query])
        bank = bank[bank != query]
    if not len(bank):
        return []
    embeddings = features.embeddings
    cosines, rows = nearest_neighbours(embeddings[[query]], embeddings[bank], min(count, len(bank)))
    return [
        (int(bank[row]), float(cosine)) for row, cosine in zip(rows[0], cosines[0], strict=True)
    ]


def make_thumbnail(video: Video) -> Thumbnail:
    """At most FRAMES frames from the middle SECONDS of a video, at its original speed."""
    times = video.frame_index().times
    period = times[-1] / max(1, len(times) - 1)
    length = min(SECONDS, times[-1] + period)
    begin = (times[-1] + period - length) / 2
    moments = begin + (np.arange(FRAMES) + 0.5) * length / FRAMES
    indices = np.unique(np.abs(times[None] - moments[:, None]).argmin(axis=1))
    with open_video(video) as reader:
        images = [Image.fromarray(frame) for frame in read_frames(reader, indices)]
    for image in images:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    milliseconds = max(20, round(1000 * length / len(images)))
    return Thumbnail(
        animated=_webp(images, milliseconds),
        still=_webp([images[len(images) // 2]], milliseconds),
        width=images[0].width,
        height=images[0].height,
    )


def build_gallery(features: Features, videos: Sequence[Video], rows: Sequence[int]) -> Gallery:
    """Queries with their neighbours.

    videos: all rows of the manifest. rows: the row of each video of the features.
    """
    queries, rule = choose_queries(features)
    found = {int(query): neighbours(features, int(query)) for query in queries}
    wanted = sorted({*found, *(index for near in found.values() for index, _ in near)})
    progress = tqdm(wanted, "thumbnails", leave=False, disable=None)
    thumbnails = {index: make_thumbnail(videos[rows[index]]) for index in progress}

    def video(index: int, query: int | None = None, cosine: float | None = None) -> GalleryVideo:
        label, same_class = str(features.labels[index]), None
        if query is not None and label and features.labels[query]:
            same_class = bool(label == features.labels[query])
        name = "/".join(str(features.names[index]).split("/")[-2:])
        return GalleryVideo(name, label, thumbnails[index], cosine, same_class)

    gallery = tuple(
        (video(query), tuple(video(index, query, cosine) for index, cosine in near))
        for query, near in found.items()
    )
    bank = "Videos and their nearest neighbours from other source groups"
    if (features.splits == "train").any():
        bank = "Test videos and their nearest train videos"
    return Gallery(gallery, bank, rule)


def _webp(images: Sequence[Image.Image], milliseconds: int) -> str:
    """Data URI of a WebP; each frame is shown for that long."""
    out = io.BytesIO()
    images[0].save(
        out,
        "WEBP",
        quality=QUALITY,
        method=4,
        save_all=len(images) > 1,
        append_images=images[1:],
        duration=milliseconds,
        loop=0,
    )
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
