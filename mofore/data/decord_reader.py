"""Read frames with decord, for videos whose frames it was seen to return as FFmpeg does.

decord (0.6.0, the last release) seeks by presentation time, and silently returns other frames where
a container has none (AVI with B-frames) or where a key frame is not a clean start (open GOP).
"""

import io
from collections.abc import Iterator

import decord
import numpy as np
from numpy.typing import NDArray

from mofore.data.frame_index import FrameIndex
from mofore.data.storage import DecodeError, VideoFile, first_line

# decord replaces a frame that it cannot decode by a neighbour, unless this share is exceeded.
FAULT_TOLERANCE = 1e-9
CHUNK_FRAMES = 16  # in memory at a time


class DecordReader:
    """An open video. Neither thread-safe nor picklable.

    Raises DecodeError if `source` is not a video, or has other frames than `index`.
    """

    def __init__(self, source: VideoFile, index: FrameIndex) -> None:
        self.source = source
        # decord's FFmpeg logs every irregularity of a file. Real errors arrive as exceptions.
        decord.logging.set_level(decord.logging.QUIET)
        data = io.BytesIO(source.data) if isinstance(source.data, bytes) else source.data
        try:
            self._decord = decord.VideoReader(data, num_threads=1, fault_tol=FAULT_TOLERANCE)
        except (decord.DECORDError, RuntimeError, AssertionError) as error:
            reason = f"not a video or damaged: {first_line(error)}"
            raise DecodeError(source.uri, reason) from None
        index.check_frames(source.uri, len(self._decord))

    def frames(self, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """The frames at ascending, distinct indices, one after the other: u8 [H, W, 3].

        Raises DecodeError if a frame cannot be decoded.
        """
        for start in range(0, len(wanted), CHUNK_FRAMES):
            try:
                yield from self._decord.get_batch(wanted[start : start + CHUNK_FRAMES]).asnumpy()
            except decord.DECORDError as error:
                raise DecodeError(self.source.uri, f"damaged: {first_line(error)}") from None
            except decord.DECORDLimitReachedError:
                reason = "damaged: some frames cannot be decoded"
                raise DecodeError(self.source.uri, reason) from None

    def close(self) -> None:
        del self._decord
