"""What the scan learns of one file: reads it whole, decodes every frame once, and says why where it cannot.

Runs in worker processes: native code may crash, or loop for ever on a file whose frame count lies.
"""

import hashlib
import io
from typing import NamedTuple

import av
import numpy as np

from mofore.data.decode import CHUNK, Reader, Undecodable, load, words

SEEKS = 8  # frames that are compared with the same ones read in order


class Facts(NamedTuple):
    """What the manifest says of a video's content; `fps`, `duration` (seconds) and `digest` as in `Row`."""

    frames: int
    fps: float
    width: int
    height: int
    duration: float
    digest: str


def probe(uri: str, offset: int | None = None, size: int | None = None) -> Facts:
    """Verifies the video at `uri`, or in its bytes [offset, offset + size). Undecodable says why it fails."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise Undecodable(uri, "the file name is not UTF-8: rename the file") from None
    source = load(uri, offset, size)
    digest = _hash(uri, source)
    _check_container(uri, source)
    reader = Reader(uri, source)
    frames = len(reader)
    if frames == 1:
        raise Undecodable(uri, "one frame: no motion to learn from")
    height, width = _decode_all(reader, source)
    fps = (frames - 1) / float(reader.times[-1]) if reader.times[-1] > 0 else 0.0
    if not 0 < fps < float("inf"):
        raise Undecodable(uri, "all frames have the same time")
    return Facts(frames, fps, width, height, frames / fps, digest)


def _hash(uri: str, source: str | bytes) -> str:
    """SHA-256 of the bytes, hex. First to touch a local file, so that it also finds the unreadable one."""
    if isinstance(source, bytes):
        sha, length = hashlib.sha256(source), len(source)
    else:
        try:
            with open(source, "rb") as file:
                sha = hashlib.file_digest(file, "sha256")
                length = file.tell()
        except OSError as error:
            reasons = {FileNotFoundError: "no such file", PermissionError: "no permission to read it"}
            raise Undecodable(uri, reasons.get(type(error), error.strerror or words(error))) from None
    if not length:
        raise Undecodable(uri, "empty file")
    return sha.hexdigest()


def _check_container(uri: str, source: str | bytes) -> None:
    """Undecodable where there is no video, or the last packet is cut off.

    PyAV for this: it tells these apart, and decord takes a file that was cut off for a shorter one. The frame
    count in the header is no help: in good files (JHMDB's) it is up to 8 above what was ever coded.
    """
    try:
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else source, "r") as container:
            if not container.streams.video:
                only = " (audio only)" if container.streams.audio else ""
                raise Undecodable(uri, f"no video stream{only}")
            stream = container.streams.video[0]
            packets, cut = 0, False
            for packet in container.demux(stream):
                if packet.size:
                    packets, cut = packets + 1, packet.is_corrupt
            if not packets:
                raise Undecodable(uri, "zero frames")
            if cut:
                whole = f"{packets - 1} of {stream.frames}" if stream.frames else f"{packets - 1}"
                raise Undecodable(uri, f"truncated: only {whole} frames are whole")
    except av.FFmpegError as error:
        raise Undecodable(uri, f"not a video or damaged: {error.strerror}") from None


def _decode_all(reader: Reader, source: str | bytes) -> tuple[int, int]:
    """Height and width, once every frame has been decoded and, where training will seek, seeking agrees."""
    frames = len(reader)
    checked = np.unique(np.linspace(0, frames - 1, SEEKS + 2).astype(int)[1:-1])
    kept, decoded = [], 0
    try:
        for start, chunk in reader.scan(frames):
            decoded += len(chunk)
            kept.append(chunk[checked[(checked >= start) & (checked < decoded)] - start])
    except Undecodable as error:
        reason = f"{error.reason} (between frames {decoded} and {min(decoded + CHUNK, frames)} of {frames})"
        raise Undecodable(reader.uri, reason) from None
    if reader.seekable and not np.array_equal(Reader(reader.uri, source).seek(checked), np.concatenate(kept)):
        raise Undecodable(
            reader.uri,
            "seeking finds other frames than reading in order: encode it anew, "
            "as in ffmpeg -i OLD -c:v libx264 NEW.mp4",
        )
    return chunk.shape[1], chunk.shape[2]
