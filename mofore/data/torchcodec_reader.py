"""Read frames with torchcodec, for videos whose frames it was seen to return as FFmpeg does."""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofore.data.frame_index import FrameIndex
from mofore.data.storage import DecodeError, VideoFile, first_line
from mofore.errors import UserError

CHUNK_FRAMES = 16  # in memory at a time


class TorchcodecReader:
    """An open video. Neither thread-safe nor picklable.

    Raises UserError if torchcodec cannot be imported, and DecodeError if `source` is not a video,
    or has other frames than `index`.
    """

    def __init__(self, source: VideoFile, index: FrameIndex) -> None:
        self.source = source
        decoders = import_torchcodec()
        try:
            self._decoder = decoders.VideoDecoder(
                source.data, num_ffmpeg_threads=1, dimension_order="NHWC"
            )
        except (RuntimeError, ValueError) as error:
            reason = f"not a video or damaged: {first_line(error)}"
            raise DecodeError(source.uri, reason) from None
        index.check_frames(source.uri, len(self._decoder))

    def frames(self, wanted: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """The frames at ascending, distinct indices, one after the other: u8 [H, W, 3].

        Raises DecodeError if a frame cannot be decoded.
        """
        for start in range(0, len(wanted), CHUNK_FRAMES):
            indices = wanted[start : start + CHUNK_FRAMES].tolist()
            try:
                yield from self._decoder.get_frames_at(indices=indices).data.numpy()
            except (RuntimeError, IndexError) as error:
                raise DecodeError(self.source.uri, f"damaged: {first_line(error)}") from None

    def close(self) -> None:
        """Close the file."""
        del self._decoder


def import_torchcodec() -> Any:
    """torchcodec.decoders. Raises UserError with the reason if it cannot be imported."""
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"The decoder torchcodec cannot be used: {first_line(error)}. Install it with "
            "`pip install mofore[torchcodec]`, and FFmpeg's libraries; or prepare the videos again "
            "with --decoders pyav."
        ) from None
