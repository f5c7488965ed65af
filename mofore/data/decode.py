"""From a video's bytes to its frames, through decord with one thread.

open_video(video) -> Reader, then frame_times(reader) -> f64 [n] seconds and
read_frames(reader, indices) -> u8 [n, H, W, 3].

decord (0.6.0, its last) seeks by presentation time. In files whose packets carry none (AVI and MPEG program
streams with B-frames) it reports nonsense times and, on a seek or a skip, returns other frames than the ones
asked for, without a word. Reading every frame in order is right there too, so that is how those are read.
"""

import io
import os
import re
from collections.abc import Iterator

import decord
import fsspec
import numpy as np

from mofore.data.manifest import Video

# FFmpeg inside decord prints every oddity of every file. What matters comes back as an exception.
decord.logging.set_level(decord.logging.QUIET)

CHUNK = 16  # frames held at once while reading in order: 100 MB at 1080p
# decord fills a frame that it cannot decode with its neighbour, unless this share of frames is exceeded.
FAULT_TOLERANCE = 1e-9
NO_TIME = -1e6  # seconds; FFmpeg's "no time known" (-2**63 ticks) is far below, a real edit list far above


class Undecodable(Exception):
    """A video that cannot be read: `uri` and a `reason` of one line for people."""

    def __init__(self, uri: str, reason: str):
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


class Reader:
    """An open video of `len(reader)` frames. Not safe to share between threads or to pickle."""

    def __init__(self, uri: str, source: str | bytes):
        self.uri = uri
        self._source = source
        self._decord = self._open()
        self._fresh = True
        stamps = self._decord.get_frame_timestamp(range(len(self._decord)))[:, 0].astype(np.float64)
        self.timed = bool((stamps > NO_TIME).all())
        self.seekable = self.timed and bool((np.diff(stamps) > 0).all())
        rate = self._decord.get_avg_fps()
        # Containers without presentation times (AVI, MPEG-PS) have one constant rate.
        self.times = stamps - stamps[0] if self.timed else np.arange(len(stamps)) / rate

    def __len__(self) -> int:
        return len(self._decord)

    def _open(self) -> decord.VideoReader:
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        try:
            return decord.VideoReader(source, num_threads=1, fault_tol=FAULT_TOLERANCE)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            missing = isinstance(source, str) and not os.path.exists(source)
            reason = "no such file" if missing else f"not a video or damaged: {words(error)}"
            raise Undecodable(self.uri, reason) from None

    def seek(self, indices: np.ndarray) -> np.ndarray:
        """Frames at ascending `indices`, u8 [n, H, W, 3], in one call that seeks to key frames."""
        self._fresh = False
        return self._get(indices)

    def scan(self, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Frames 0 to `stop`, none left out: (index of the first, u8 [up to CHUNK, H, W, 3])."""
        if not self._fresh:
            self._decord = self._open()
        self._fresh = False
        for start in range(0, stop, CHUNK):
            yield start, self._get(np.arange(start, min(start + CHUNK, stop)))

    def _get(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self._decord.get_batch(indices).asnumpy()
        except decord.DECORDError as error:
            raise Undecodable(self.uri, f"damaged: {words(error)}") from None
        except decord.DECORDLimitReachedError:
            raise Undecodable(self.uri, "damaged: some frames cannot be decoded") from None


def open_video(video: Video | str) -> Reader:
    """Opens a row of the manifest, or a path or URL. Undecodable if there is no video there."""
    if isinstance(video, str):
        return Reader(video, load(video))
    return Reader(video.uri, load(video.uri, video.offset, video.size))


def frame_times(reader: Reader) -> np.ndarray:
    """Seconds at which each frame is shown, f64 [n], the first at 0, never falling.

    From timestamps, so that they hold under variable frame rate, where the mean rate misleads. decord gives
    them as f32: after an hour they are good to 0.2 ms.
    """
    return reader.times


def read_frames(reader: Reader, indices: np.ndarray | list[int] | range) -> np.ndarray:
    """Frames in the order asked for, repeats allowed: u8 [n, H, W, 3]. Each frame is decoded once.

    IndexError for a negative index (decord takes -1 as the last frame) or one past the end.
    """
    wanted = np.asarray(indices)
    assert wanted.ndim == 1
    assert wanted.size > 0
    assert np.issubdtype(wanted.dtype, np.integer)
    if wanted.min() < 0 or wanted.max() >= len(reader):
        outside = wanted[(wanted < 0) | (wanted >= len(reader))]
        raise IndexError(f"{reader.uri} has frames 0 to {len(reader) - 1}, not {outside.tolist()}")
    unique, back = np.unique(wanted, return_inverse=True)
    if reader.seekable:
        frames = reader.seek(unique)
    else:
        chunks = [
            chunk[unique[(unique >= start) & (unique < start + len(chunk))] - start]
            for start, chunk in reader.scan(int(unique[-1]) + 1)
        ]
        frames = np.concatenate(chunks)
    return frames if np.array_equal(unique, wanted) else frames[back]


def load(uri: str, offset: int | None = None, size: int | None = None) -> str | bytes:
    """The path of a whole local file (decord opens it itself), else the video's bytes, through fsspec.

    File systems are made here, in the process that reads: s3fs and others do not survive a fork.
    Undecodable if the bytes cannot be had.
    """
    member = offset is not None and size is not None
    if uri.startswith("file://") and not member:
        return uri.removeprefix("file://")
    if "://" not in uri and not member:
        return uri
    try:
        system, path = fsspec.url_to_fs(uri)
        data = system.cat_file(path, offset, offset + size) if member else system.cat_file(path)  # type: ignore[operator]
    except FileNotFoundError:
        raise Undecodable(uri, "no such file") from None
    except Exception as error:  # every file system has errors of its own
        raise Undecodable(uri, f"cannot be read: {type(error).__name__}: {words(error)}") from error
    if member and len(data) != size:
        raise Undecodable(uri, f"the file ends inside this member (offset {offset}, size {size})")
    return data


def words(error: BaseException) -> str:
    """The first line of an error, without decord's clock, source positions and memory addresses."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", line)
    return re.sub(r"Check failed: .*? \(.*? vs\. .*?\) ", "", line)[:200]
