"""When each frame of a video is shown, and where a reader may start: stored with its row.

Training needs no scan of the file, and a reader knows which frame it has by its presentation time.
"""

import struct
import zlib
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mofore.data.storage import DecodeError

HEADER = struct.Struct("<qqqqII")  # first, end, time base (2), number of frames, of key frames


class FrameIndex(NamedTuple):
    """ticks: presentation times i64 [n], ascending, in units of `time_base` seconds. keys: frames
    i64 [k], ascending, at which decoding can start; the first is 0. end: when the last frame ends,
    in the same units.
    """

    ticks: NDArray[np.int64]
    keys: NDArray[np.int64]
    end: int
    time_base: Fraction

    @property
    def times(self) -> NDArray[np.float64]:
        """Start of each frame in seconds, f64 [n]; the first is 0."""
        return (self.ticks - self.ticks[0]) * float(self.time_base)

    @property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last."""
        return float((self.end - int(self.ticks[0])) * self.time_base)

    def check_frames(self, uri: str, frames: int) -> None:
        """Raise DecodeError if a decoder finds another number of frames."""
        if frames != len(self.ticks):
            found = f"{frames} frames in place of {len(self.ticks)}"
            raise DecodeError(uri, f"{found}: the file has changed")

    def pack(self) -> bytes:
        """About 60 bytes if the frames are evenly spaced."""
        base = self.time_base
        header = HEADER.pack(
            *(int(self.ticks[0]), self.end, base.numerator, base.denominator),
            *(len(self.ticks), len(self.keys)),
        )
        steps = np.concatenate([np.diff(self.ticks), np.diff(self.keys)])
        return zlib.compress(header + steps.astype("<i8").tobytes())

    @classmethod
    def unpack(cls, packed: bytes) -> "FrameIndex":
        """Raises ValueError for other bytes."""
        try:
            data = zlib.decompress(packed)
            first, end, numerator, denominator, frames, keys = HEADER.unpack_from(data)
            steps = np.frombuffer(data, "<i8", offset=HEADER.size)
        except (zlib.error, struct.error, ValueError) as error:
            raise ValueError(f"not an index of frames: {error}") from None
        if len(steps) != frames + keys - 2 or denominator < 1:
            raise ValueError("not an index of frames: its lengths differ")
        ticks = np.cumsum(np.concatenate([[first], steps[: frames - 1]]))
        return cls(
            ticks,
            np.cumsum(np.concatenate([[0], steps[frames - 1 :]])),
            end,
            Fraction(numerator, denominator),
        )
