"""Decode a video once, from its first frame to its last: what FFmpeg shows, and when.

This order of frames is the truth that every other way of reading is compared with.
"""

import statistics
import zlib
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mofore.data.conversion import Converter, shown_size
from mofore.data.frame_index import FrameIndex
from mofore.data.manifest import Access, Decoder, Video
from mofore.data.pyav_reader import (
    SequentialDecoder,
    choose_stream,
    open_container,
)
from mofore.data.storage import DecodeError, VideoFile

DEFAULT_RATE = Fraction(25)  # frames per second, as ffmpeg assumes for a stream that states none


class Scan(NamedTuple):
    """timed: whether the frames have distinct times, so that a reader can tell them apart. bad:
    frames that cannot be decoded, or that the file has lost; no other value counts them. stated:
    seconds that the video has by its header; 0 if it does not say.
    """

    frame_index: FrameIndex
    checksums: list[int]  # of the pixels of each frame
    width: int  # pixels, as shown
    height: int
    timed: bool
    bad: int
    stated: float


def scan(source: VideoFile) -> Scan:
    """Raises DecodeError if there is no video stream, or no frame that can be decoded."""
    with open_container(source) as container:
        stream = choose_stream(source.uri, container)
        decoder, convert = SequentialDecoder(container, stream), None
        stamps: list[int | None] = []  # presentation times
        dts: list[int | None] = []  # decoding times
        keys: list[int] = []
        checksums: list[int] = []
        duration = 0
        for frame in decoder:
            if convert is None:
                convert = Converter(*shown_size(frame))
            if frame.key_frame:
                keys.append(len(stamps))
            stamps.append(frame.pts)
            dts.append(frame.dts)
            checksums.append(checksum(convert(frame)))
            duration = frame.duration or 0
        bad = decoder.bad + decoder.lost
        if convert is None:
            reason = f"none of {bad} frames can be decoded" if bad else "zero frames"
            raise DecodeError(source.uri, reason)
        index, timed = _index(stamps, dts, keys, duration, stream)
        stated = _stated_seconds(container, stream)
    return Scan(index, checksums, convert.width, convert.height, timed, bad, stated)


def _stated_seconds(container: InputContainer, stream: VideoStream) -> float:
    if container.format.name == "avi" and stream.average_rate:
        # FFmpeg shortens the duration of a file that is cut off. The header counts the frames that
        # a recorder dropped too, so this is the duration.
        return float(stream.frames / stream.average_rate)
    return float((stream.duration or 0) * (stream.time_base or 0))


def checksum(frame: NDArray[np.uint8]) -> int:
    """CRC-32 of the pixels."""
    return zlib.crc32(np.ascontiguousarray(frame).data)


def _index(
    stamps: list[int | None],
    dts: list[int | None],
    keys: list[int],
    duration: int,
    stream: VideoStream,
) -> tuple[FrameIndex, bool]:
    """The index, and whether the frames have ascending times. duration: of the last frame, ticks.

    As in FFmpeg, decoding times replace presentation times that step back (H.264 in AVI). A raw
    stream without times has its frames at even distances.
    """
    time_base, timed = stream.time_base, _ascend(stamps)
    if not timed and _ascend(whole := _extend(dts)):
        stamps = whole
    if time_base is None or None in stamps:
        rate = stream.guessed_rate or stream.average_rate or DEFAULT_RATE
        ticks = np.arange(len(stamps), dtype=np.int64)
        return FrameIndex(ticks, np.array([0]), len(stamps), 1 / Fraction(rate)), False
    ticks = np.array(stamps, dtype=np.int64)
    ticks = np.maximum.accumulate(ticks)  # a time that steps back is that of the frame before it
    if duration <= 0:
        duration = round(statistics.median(np.diff(ticks).tolist() or [1]))
    starts = np.unique(np.array([0, *keys]))
    return FrameIndex(ticks, starts, int(ticks[-1]) + duration, Fraction(time_base)), timed


def describe(
    source: VideoFile, offset: int | None, found: Scan, decoder: Decoder, access: Access
) -> Video:
    """The row of a scanned video. Raises DecodeError if it is too short for one."""
    index, frames = found.frame_index, len(found.checksums)
    if frames == 1:
        raise DecodeError(source.uri, "one frame: a video needs at least two")
    last = float(index.times[-1])
    if last <= 0:
        raise DecodeError(source.uri, "all frames have the same time")
    return Video(
        source.uri,
        offset,
        source.size,
        frames,
        (frames - 1) / last,
        found.width,
        found.height,
        index.duration,
        decoder,
        access,
        index.pack(),
    )


def _extend(dts: list[int | None]) -> list[int | None]:
    """The last frames leave a decoder when no packet is left, so without a decoding time."""
    known = [tick for tick in dts if tick is not None]
    if len(known) < 2 or dts[: len(known)] != known:
        return dts
    step = round(statistics.median(np.diff(known).tolist()))
    return [*known, *(known[-1] + step * (i + 1) for i in range(len(dts) - len(known)))]


def _ascend(ticks: list[int | None]) -> bool:
    return None not in ticks and bool((np.diff(np.array(ticks, dtype=np.int64)) > 0).all())
