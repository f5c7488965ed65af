"""Read frames with PyAV, whose wheel brings a current FFmpeg.

Decoding in order is the truth. Reading by seeking jumps to the key frame before the wanted ones,
and recognises each frame by its presentation time. Frames that are neither wanted nor needed by
others are skipped before they are decoded.
"""

import io
from collections import deque
from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mofore.data.conversion import Converter
from mofore.data.frame_index import FrameIndex
from mofore.data.storage import DecodeError, VideoFile, os_reason

av.logging.set_level(av.logging.PANIC)  # FFmpeg logs every irregularity; errors are exceptions


class PyAVReader:
    """An open video. Neither thread-safe nor picklable.

    width, height: of the shown frames, in pixels. seek: jump to key frames; otherwise every frame
    up to the last wanted one is decoded. Raises DecodeError if `source` is not a video.
    """

    def __init__(
        self, source: VideoFile, index: FrameIndex, width: int, height: int, seek: bool
    ) -> None:
        self.source, self.index, self.seek = source, index, seek
        self._convert = Converter(width, height)
        self._open()

    def _open(self) -> None:
        self._container = open_container(self.source)
        self._stream = choose_stream(self.source.uri, self._container)
        self._at_start = True

    def close(self) -> None:
        self._container.close()

    def frames(self, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """The frames at ascending, distinct indices, one after the other: u8 [H, W, 3].

        Raises DecodeError if a frame cannot be decoded or is missing.
        """
        found = self._by_seeking(wanted) if self.seek else self._in_order(wanted)
        return map(self._convert, found)

    def _in_order(self, wanted: NDArray[np.int64]) -> Iterator[VideoFrame]:
        if not self._at_start:
            self.close()
            self._open()
        self._at_start = False
        pending = deque(wanted.tolist())
        for position, frame in enumerate(SequentialDecoder(self._container, self._stream)):
            if position == pending[0]:
                pending.popleft()
                yield frame
                if not pending:
                    return
        raise DecodeError(self.source.uri, f"frame {pending[0]} is missing: the file has changed")

    def _by_seeking(self, wanted: NDArray[np.int64]) -> Iterator[VideoFrame]:
        """A run of frames after one key frame at a time."""
        runs = np.searchsorted(self.index.keys, wanted, side="right") - 1
        for run in np.unique(runs):
            yield from self._after_key(int(run), self.index.ticks[wanted[runs == run]])

    def _after_key(self, key: int, ticks: NDArray[np.int64]) -> Iterator[VideoFrame]:
        """The frames at `ticks`, which lie between key frame number `key` and the next.

        Some containers (MPEG-TS) seek to a place after the key frame: then from an earlier one.
        """
        pending = deque(ticks.tolist())
        for back in (0, 1, 2, 4, 8, key):
            for frame in self._decode_from(max(0, key - back), frozenset(pending)):
                if frame.pts is None or frame.pts < pending[0]:
                    continue
                if frame.pts > pending[0]:
                    break
                pending.popleft()
                yield frame
                if not pending:
                    return
            if back >= key:
                break
        seconds = float((pending[0] - int(self.index.ticks[0])) * self.index.time_base)
        raise DecodeError(
            self.source.uri,
            f"the frame at {seconds:.3f} s is missing: the file has changed",
        )

    def _decode_from(self, key: int, wanted: frozenset[int]) -> Iterator[VideoFrame]:
        """Frames from key frame number `key` on; others than the `wanted` ones may be missing."""
        try:
            if key:
                ticks = int(self.index.ticks[self.index.keys[key]])
                self._container.seek(ticks, stream=self._stream, backward=True)
            elif not self._at_start:
                self.close()
                self._open()
            self._at_start = False
            codec = self._stream.codec_context
            for packet in self._container.demux(self._stream):
                skipped = packet.pts is not None and packet.pts not in wanted
                codec.skip_frame = "NONREF" if skipped else "DEFAULT"
                try:
                    frames = packet.decode()
                except av.FFmpegError:  # as after a seek into the middle of a group of frames
                    continue
                yield from (frame for frame in frames if not frame.is_corrupt)
        except av.FFmpegError:  # the file ends early: the caller misses its frames
            return


def open_container(source: VideoFile) -> InputContainer:
    """Raises DecodeError if it is not a video."""
    data = source.data
    # "file:", as FFmpeg takes what stands before a colon for a protocol.
    file = io.BytesIO(data) if isinstance(data, bytes) else f"file:{data}"
    try:
        return av.open(file, "r", metadata_errors="ignore")
    except (FileNotFoundError, PermissionError) as error:
        raise DecodeError(source.uri, os_reason(error)) from None
    except av.FFmpegError as error:
        raise DecodeError(source.uri, f"not a video or damaged: {error.strerror}") from None


def choose_stream(uri: str, container: InputContainer) -> VideoStream:
    """The stream that ffmpeg takes: the default one, else the one with most pixels; no cover art.

    It decodes in one thread. Raises DecodeError if there is none.
    """
    streams = container.streams.video
    moving = [stream for stream in streams if not stream.disposition & Disposition.attached_pic]
    if not moving:
        detail = " (audio only)" if container.streams.audio else ""
        detail = " (only a cover picture)" if streams else detail
        raise DecodeError(uri, f"no video stream{detail}")
    stream = max(
        moving,
        key=lambda stream: (
            bool(stream.disposition & Disposition.default),
            stream.codec_context.width * stream.codec_context.height,
            -stream.index,
        ),
    )
    stream.codec_context.thread_count = 1
    stream.codec_context.open()  # now: some decoders take `skip_frame` only when they are opened
    return stream


class SequentialDecoder:
    """The frames of a stream in the order in which they are shown, without those that are damaged.

    bad: frames so far that cannot be decoded, or that are damaged. lost: at the end, frames that
    the container lists and that are not in the file.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.container, self.stream = container, stream
        self.bad, self.lost = 0, 0

    def __iter__(self) -> Iterator[VideoFrame]:
        packets = 0
        for packet, is_last in self._packets():
            packets += 1
            if is_last and packet.is_corrupt:  # the end of the file cuts it off
                self.bad += 1
                continue
            yield from self._decode(packet)
        yield from self._decode(None)  # frames that the decoder holds back
        self.lost = max(0, len(self.stream.index_entries) - packets)

    def _packets(self) -> Iterator[tuple["Packet[VideoStream]", bool]]:
        """The packets, and whether each is the last."""
        held = None
        try:
            for packet in self.container.demux(self.stream):
                if held is not None:
                    yield held, packet.size == 0  # an empty packet stands at the end
                held = packet if packet.size else None
        except av.FFmpegError:  # the rest of the file cannot be read
            self.bad += 1
            if held is not None:
                yield held, True

    def _decode(self, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
        """The undamaged frames of a packet."""
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.FFmpegError:
            self.bad += packet is not None
            return []
        undamaged = [frame for frame in frames if not frame.is_corrupt]
        self.bad += len(frames) - len(undamaged)
        return undamaged
