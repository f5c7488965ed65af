"""Open a video with the decoder that `prepare` verified, and read its frames in any order.

open_video(video)    a row of a manifest -> Reader, if the file has the size in the row
probe(uri)           a path or URL without a row -> such a row: decodes every frame once
read_frames          frames at any indices
read_views           the same, turned into views, with only a few frames in memory at a time
"""

import ctypes
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mofore.data.decord_reader import DecordReader
from mofore.data.manifest import Access, Decoder, Video
from mofore.data.pyav_reader import PyAVReader
from mofore.data.scan import describe, scan
from mofore.data.storage import DecodeError, VideoFile, load
from mofore.data.torchcodec_reader import TorchcodecReader

CHUNK_BYTES = 2**25  # of frames that are turned into views at a time
TRIM_EVERY = 50  # videos that are closed
_closings = itertools.count(1)


class Reader(Protocol):
    """An open video. Neither thread-safe nor picklable."""

    def frames(self, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """The frames at ascending, distinct indices, one after the other: u8 [H, W, 3].

        Raises DecodeError if a frame cannot be decoded.
        """
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@contextmanager
def open_video(video: Video) -> Iterator[Reader]:
    """The reader of a row, which is closed when its context ends.

    Raises DecodeError if the file is missing, is no video, or has another size than in the row.
    """
    member = (video.offset, video.size) if video.offset is not None else ()
    source = load(video.uri, *member)
    if source.size != video.size:
        raise DecodeError(
            video.uri, f"it has {source.size} bytes in place of {video.size}: the file has changed"
        )
    reader = open_reader(source, video)
    try:
        yield reader
    finally:
        reader.close()
        if next(_closings) % TRIM_EVERY == 0:
            return_free_memory()


def return_free_memory() -> None:
    """Give memory that is not in use back to the system, if the C library is glibc.

    It keeps what decoders free, and finds ever less of it fit for the next video.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def open_reader(source: VideoFile, video: Video) -> Reader:
    """Raises DecodeError if it is not a video, UserError if its decoder is not installed."""
    if video.decoder is Decoder.decord:
        return DecordReader(source, video.frame_index())
    if video.decoder is Decoder.torchcodec:
        return TorchcodecReader(source, video.frame_index())
    seek = video.access is Access.seek
    return PyAVReader(source, video.frame_index(), video.width, video.height, seek)


def probe(uri: str) -> Video:
    """What `prepare` would find, except that frames are always read in order.

    Raises DecodeError if it is not a video of two frames or more.
    """
    source = load(uri)
    return describe(source, None, scan(source), Decoder.pyav, Access.order)


def read_frames(reader: Reader, indices: ArrayLike) -> NDArray[np.uint8]:
    """Frames at `indices`, in any order, with repeats: u8 [n, H, W, 3]. Decodes each frame once.

    Raises DecodeError if a frame cannot be decoded.
    """
    unique, inverse = np.unique(np.asarray(indices), return_inverse=True)
    return np.stack(list(reader.frames(unique)))[inverse]


def read_views(
    reader: Reader, indices: ArrayLike, view: Callable[[NDArray[np.uint8]], Tensor]
) -> Tensor:
    """Views of the frames at `indices`, in any order, with repeats: [n, ...].

    view: frames u8 [m, H, W, 3] -> [m, ...]. Raises DecodeError if a frame cannot be decoded.
    """
    unique, inverse = np.unique(np.asarray(indices), return_inverse=True)
    views: list[Tensor] = []
    chunk: list[NDArray[np.uint8]] = []
    for frame in reader.frames(unique):
        chunk.append(frame)
        if len(chunk) * frame.nbytes >= CHUNK_BYTES:
            views.append(view(np.stack(chunk)))
            chunk = []
    if chunk:
        views.append(view(np.stack(chunk)))
    together = torch.cat(views)
    in_order = np.array_equal(inverse, np.arange(len(unique)))
    return together if in_order else together[torch.from_numpy(inverse)]
