"""Decode frames of a video with decord, in one thread.

open_video(video) -> Reader; frame_times(reader) -> f64 [n] seconds;
read_frames(reader, indices) -> u8 [n, H, W, 3].

decord (0.6.0, the last release) seeks by presentation time. Some containers store none: AVI and
MPEG program streams with B-frames. For these decord reports wrong times, and after a seek or a skip
it silently returns the wrong frames. Reading every frame in order is still correct, so
`read_frames` does that for such files.
"""

import io
import os
import re
from collections.abc import Iterator

import decord
import fsspec
import numpy as np

from mofore.data.manifest import Video

# Frames held in memory while reading in order: 100 MB at 1080p.
CHUNK_FRAMES = 16
# decord replaces a frame that it cannot decode by a neighbour, unless this share is exceeded.
FAULT_TOLERANCE = 1e-9
# Seconds. FFmpeg marks an unknown time with -2**63 ticks, far below; edit lists stay far above.
MIN_TIMESTAMP = -1e6


class DecodeError(Exception):
    """A video that cannot be decoded: its `uri` and a one-line `reason`."""

    def __init__(self, uri: str, reason: str):
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


class Reader:
    """An open video of `len(reader)` frames. Neither thread-safe nor picklable.

    Attributes: `uri`; `times`, f64 [n] seconds; `seekable`, whether seeking by time is reliable.
    Raises DecodeError if `source`, a path or the bytes of a file, is not a video.
    """

    def __init__(self, uri: str, source: str | bytes):
        self.uri = uri
        self._source = source
        self._decord = self._open()
        self._at_start = True
        stamps = self._decord.get_frame_timestamp(range(len(self._decord)))[:, 0].astype(np.float64)
        timed = bool((stamps > MIN_TIMESTAMP).all())
        self.seekable = timed and bool((np.diff(stamps) > 0).all())
        fps = self._decord.get_avg_fps()
        # Containers without presentation times (AVI, MPEG-PS) have a constant frame rate.
        self.times = stamps - stamps[0] if timed else np.arange(len(stamps)) / fps

    def __len__(self) -> int:
        return len(self._decord)

    def _open(self) -> decord.VideoReader:
        # decord's FFmpeg logs every irregularity of a file. Real errors arrive as exceptions.
        decord.logging.set_level(decord.logging.QUIET)
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        try:
            return decord.VideoReader(source, num_threads=1, fault_tol=FAULT_TOLERANCE)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            missing = isinstance(source, str) and not os.path.exists(source)
            reason = "no such file" if missing else f"not a video or damaged: {first_line(error)}"
            raise DecodeError(self.uri, reason) from None

    def seek(self, indices: np.ndarray) -> np.ndarray:
        """Frames at ascending `indices`, u8 [n, H, W, 3], by seeking to key frames.

        Raises DecodeError if a frame cannot be decoded.
        """
        self._at_start = False
        return self._get(indices)

    def scan(self, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames 0 to `stop` in order: (index of the first, u8 [up to CHUNK_FRAMES, H, W, 3]).

        Raises DecodeError if a frame cannot be decoded.
        """
        if not self._at_start:
            self._decord = self._open()
        self._at_start = False
        for start in range(0, stop, CHUNK_FRAMES):
            yield start, self._get(np.arange(start, min(start + CHUNK_FRAMES, stop)))

    def _get(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self._decord.get_batch(indices).asnumpy()
        except decord.DECORDError as error:
            raise DecodeError(self.uri, f"damaged: {first_line(error)}") from None
        except decord.DECORDLimitReachedError:
            raise DecodeError(self.uri, "damaged: some frames cannot be decoded") from None


def open_video(video: Video | str) -> Reader:
    """Open a row of a manifest, a path or a URL. Raises DecodeError if it is not a video."""
    if isinstance(video, str):
        return Reader(video, load(video))
    return Reader(video.uri, load(video.uri, video.offset, video.size))


def frame_times(reader: Reader) -> np.ndarray:
    """Start time of each frame in seconds, f64 [n], the first at 0, never decreasing.

    The times come from timestamps and so are correct under a variable frame rate. decord stores
    them as f32: after one hour they are accurate to 0.2 ms.
    """
    return reader.times


def read_frames(reader: Reader, indices: np.ndarray | list[int] | range) -> np.ndarray:
    """Frames at `indices`, in any order, with repeats: u8 [n, H, W, 3]. Decodes each frame once.

    Raises IndexError for an index that is negative or past the end, and DecodeError if a frame
    cannot be decoded.
    """
    wanted = np.asarray(indices)
    assert wanted.ndim == 1
    assert wanted.size > 0
    assert np.issubdtype(wanted.dtype, np.integer)
    if wanted.min() < 0 or wanted.max() >= len(reader):  # decord takes -1 as the last frame
        outside = wanted[(wanted < 0) | (wanted >= len(reader))]
        raise IndexError(f"{reader.uri} has frames 0 to {len(reader) - 1}, not {outside.tolist()}")
    unique, inverse = np.unique(wanted, return_inverse=True)
    if reader.seekable:
        frames = reader.seek(unique)
    else:
        chunks = [
            chunk[unique[(unique >= start) & (unique < start + len(chunk))] - start]
            for start, chunk in reader.scan(int(unique[-1]) + 1)
        ]
        frames = np.concatenate(chunks)
    return frames if np.array_equal(unique, wanted) else frames[inverse]


def load(uri: str, offset: int | None = None, size: int | None = None) -> str | bytes:
    """The path of a local file, which decord opens itself, or the video's bytes read by fsspec.

    Reads bytes [offset, offset + size) if both are given. The file system is created here, in the
    process that reads: s3fs and others do not survive a fork.

    Raises DecodeError if the bytes cannot be read.
    """
    is_member = offset is not None and size is not None
    if uri.startswith("file://") and not is_member:
        return uri.removeprefix("file://")
    if "://" not in uri and not is_member:
        return uri
    try:
        system, path = fsspec.url_to_fs(uri)
        part = (offset, offset + size) if is_member else ()  # type: ignore[operator]
        data = system.cat_file(path, *part)
    except FileNotFoundError:
        raise DecodeError(uri, "no such file") from None
    except Exception as error:  # each file system has its own exceptions
        reason = f"cannot be read: {type(error).__name__}: {first_line(error)}"
        raise DecodeError(uri, reason) from error
    if is_member and len(data) != size:
        raise DecodeError(uri, f"the file ends inside this member (offset {offset}, size {size})")
    return data


def first_line(error: BaseException) -> str:
    """First line of an error, without decord's time, source positions and memory addresses."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", line)
    return re.sub(r"Check failed: .*? \(.*? vs\. .*?\) ", "", line)[:200]
