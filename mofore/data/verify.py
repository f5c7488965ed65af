"""Verify one video: hash it, decode it in order, and find a faster way to the same frames.

Every frame that the faster way returns is compared with the one decoded in order. If one differs,
training reads the video in order.

Runs in worker processes: native code may crash, or loop forever on a damaged file.
"""

import hashlib
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from mofore.data.decode import open_reader
from mofore.data.manifest import VIDEO_COLUMNS, Access, Decoder, Row, Video
from mofore.data.scan import Scan, checksum, describe, scan
from mofore.data.storage import DecodeError, VideoFile, fingerprint, load, os_reason

MAX_BAD_SHARE = 0.1
DECODERS = (Decoder.pyav,)


class Verified(NamedTuple):
    """A video that can be used, its frames that cannot, the SHA-256 of its bytes (hex), and the
    fingerprint of its file.
    """

    video: Video
    bad_frames: int
    digest: str
    fingerprint: str

    def row(self, uri: str | None = None, **annotations: str | None) -> Row:
        """As in a manifest. uri: in place of the one that was opened. annotations: label, group,
        split.
        """
        values: dict[str, Any] = {name: getattr(self.video, name) for name in VIDEO_COLUMNS}
        values["uri"] = uri or self.video.uri
        values |= annotations
        values |= self._asdict()
        del values["video"]
        return Row(**values)


def verify_video(
    uri: str,
    offset: int | None = None,
    size: int | None = None,
    decoders: Sequence[Decoder] = DECODERS,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Verified:
    """Verify the video at `uri`, or in its bytes [offset, offset + size).

    decoders: those that may be used; the first one that seeks to the right frames is. Where none
    does, PyAV decodes in order. max_bad_share: of frames that cannot be decoded, and of the
    duration that the header states.

    Raises DecodeError, with the reason, if it cannot be used for pretraining.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise DecodeError(uri, "the file name is not UTF-8: rename the file") from None
    before = fingerprint(uri)  # a file that changes from here on is noticed
    source = load(uri, offset, size)
    digest = _hash(source)
    found = scan(source)
    _check_damage(uri, found, max_bad_share)
    return Verified(_choose_access(source, offset, found, decoders), found.bad, digest, before)


def _check_damage(uri: str, found: Scan, max_bad_share: float) -> None:
    total, seconds = found.bad + len(found.checksums), found.frame_index.duration
    if found.bad > max_bad_share * total:
        raise DecodeError(uri, f"{found.bad} of {total} frames cannot be decoded or are missing")
    if found.stated - seconds > max_bad_share * found.stated:
        raise DecodeError(uri, f"cut off: {seconds:.2f} of {found.stated:.2f} s can be decoded")


def _choose_access(
    source: VideoFile, offset: int | None, found: Scan, decoders: Sequence[Decoder]
) -> Video:
    for decoder in decoders if found.timed else ():
        video = describe(source, offset, found, decoder, Access.seek)
        if _seeks_right(source, video, found.checksums):
            return video
    return describe(source, offset, found, Decoder.pyav, Access.order)


def _seeks_right(source: VideoFile, video: Video, checksums: list[int]) -> bool:
    """Whether seeking returns every frame as decoding in order does.

    Half of the frames are read at a time, so that the reader also leaves out frames.
    """
    try:
        with closing(open_reader(source, video)) as reader:
            for first in (0, 1):
                wanted = np.arange(first, video.frames, 2)
                frames = zip(wanted, reader.frames(wanted), strict=True)
                if any(checksum(frame) != checksums[number] for number, frame in frames):
                    return False
    except DecodeError:
        return False
    return True


def _hash(source: VideoFile) -> str:
    """SHA-256 of the bytes, hex. Opens a local file first, and so reports why it is unreadable."""
    if isinstance(source.data, bytes):
        sha, length = hashlib.sha256(source.data), len(source.data)
    else:
        try:
            with open(source.data, "rb") as file:
                sha = hashlib.file_digest(file, "sha256")
                length = file.tell()
        except OSError as error:
            raise DecodeError(source.uri, os_reason(error)) from None
    if not length:
        raise DecodeError(source.uri, "empty file")
    return sha.hexdigest()
