"""Verify one video: hash it, decode every frame once, and raise the reason if that fails.

Runs in worker processes: native code may crash, or loop forever on a file with a wrong frame count.
"""

import hashlib
import io
from typing import NamedTuple

import av
import numpy as np

from mofore.data.decode import CHUNK_FRAMES, DecodeError, Reader, first_line, load

SEEKS = 8  # frames that are read by seeking and compared with the same frames read in order


class VideoInfo(NamedTuple):
    """Properties of a verified video, as in a `Row` of the manifest."""

    frames: int
    fps: float
    width: int  # pixels
    height: int  # pixels
    duration: float  # seconds
    digest: str  # SHA-256 of the bytes, hex


def verify_video(uri: str, offset: int | None = None, size: int | None = None) -> VideoInfo:
    """Verify the video at `uri`, or in its bytes [offset, offset + size).

    Raises DecodeError, with the reason, if it cannot be used for pretraining.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise DecodeError(uri, "the file name is not UTF-8: rename the file") from None
    source = load(uri, offset, size)
    digest = _hash(uri, source)
    _check_container(uri, source)
    reader = Reader(uri, source)
    frames = len(reader)
    if frames == 1:
        raise DecodeError(uri, "one frame: a video needs at least two")
    height, width = _decode_all(reader, source)
    fps = (frames - 1) / float(reader.times[-1]) if reader.times[-1] > 0 else 0.0
    if not 0 < fps < float("inf"):
        raise DecodeError(uri, "all frames have the same timestamp")
    return VideoInfo(frames, fps, width, height, frames / fps, digest)


def _hash(uri: str, source: str | bytes) -> str:
    """SHA-256 of the bytes, hex. Opens a local file first, and so reports why it is unreadable."""
    if isinstance(source, bytes):
        sha, length = hashlib.sha256(source), len(source)
    else:
        try:
            with open(source, "rb") as file:
                sha = hashlib.file_digest(file, "sha256")
                length = file.tell()
        except OSError as error:
            reasons = {
                FileNotFoundError: "no such file",
                PermissionError: "no permission to read it",
            }
            reason = reasons.get(type(error), error.strerror or first_line(error))
            raise DecodeError(uri, reason) from None
    if not length:
        raise DecodeError(uri, "empty file")
    return sha.hexdigest()


def _check_container(uri: str, source: str | bytes) -> None:
    """Raise DecodeError if there is no video stream, no frame, or if the last packet is incomplete.

    Uses PyAV, which distinguishes these cases; decord takes a truncated file for a shorter one. The
    frame count in the header is unreliable: in valid files (JHMDB) it is up to 8 too high.
    """
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as container:
            if not container.streams.video:
                detail = " (audio only)" if container.streams.audio else ""
                raise DecodeError(uri, f"no video stream{detail}")
            stream = container.streams.video[0]
            packets, truncated = 0, False
            for packet in container.demux(stream):
                if packet.size:
                    packets, truncated = packets + 1, packet.is_corrupt
            if not packets:
                raise DecodeError(uri, "zero frames")
            if truncated:
                total = f" of {stream.frames}" if stream.frames else ""
                raise DecodeError(uri, f"truncated: only {packets - 1}{total} frames are complete")
    except av.FFmpegError as error:
        raise DecodeError(uri, f"not a video or damaged: {error.strerror}") from None


def _decode_all(reader: Reader, source: str | bytes) -> tuple[int, int]:
    """Decode every frame: height and width in pixels.

    If training will seek in this file, check that seeking returns the same frames.
    """
    frames = len(reader)
    checked = np.unique(np.linspace(0, frames - 1, SEEKS + 2).astype(int)[1:-1])
    in_order, decoded = [], 0
    try:
        for start, chunk in reader.scan(frames):
            decoded += len(chunk)
            in_order.append(chunk[checked[(checked >= start) & (checked < decoded)] - start])
    except DecodeError as error:
        stop = min(decoded + CHUNK_FRAMES, frames)
        reason = f"{error.reason} (between frames {decoded} and {stop} of {frames})"
        raise DecodeError(reader.uri, reason) from None
    if reader.seekable and not np.array_equal(
        Reader(reader.uri, source).seek(checked), np.concatenate(in_order)
    ):
        raise DecodeError(
            reader.uri,
            "seeking returns other frames than reading in order: re-encode it, "
            "for example with ffmpeg -i OLD -c:v libx264 NEW.mp4",
        )
    return chunk.shape[1], chunk.shape[2]
