"""Small real video files for tests, good and bad, written with PyAV."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mofore.data.frame_index import FrameIndex
from mofore.data.manifest import Access, Decoder, Row

STEP = 4  # grey levels between two frames of `numbered_frames`


def numbered_frames(n: int = 40, height: int = 64, width: int = 64) -> np.ndarray:
    """Frames u8 [n, H, W, 3], n <= 60; the grey level of frame i encodes i for `frame_numbers`."""
    assert n <= 60
    grey = 8 + STEP * np.arange(n, dtype=np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (n, height, width, 3))


def frame_numbers(frames: np.ndarray) -> list[int]:
    """The numbers of frames [n, H, W, 3] of `numbered_frames`."""
    return np.rint((frames.mean((1, 2, 3)) - 8) / STEP).astype(int).tolist()


def noise(n: int = 40, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    """Frames u8 [n, H, W, 3] that do not compress, so that any missing byte damages a frame."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: int = 24,
    codec: str = "libx264",
    timestamps: np.ndarray | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write frames u8 [n, H, W, 3]; the suffix of `path` selects the container.

    timestamps: of each frame, in seconds, rounded to 1 ms (variable frame rate). options: of the
    codec, such as {"bf": "2", "g": "12"}. Odd heights or widths need libx264.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.bit_rate = 8_000_000  # at the default bit rate MPEG-4 drops small changes
        if timestamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            if timestamps is not None:
                frame.pts, frame.time_base = round(1000 * timestamps[i]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def row(uri: str, frames: int = 10, **values: Any) -> Row:
    """A row of a manifest for a video of so many frames at 24 fps that does not exist."""
    index = FrameIndex(np.arange(frames), np.array([0]), frames, Fraction(1, 24))
    known = dict(offset=None, size=1000, frames=frames, fps=24.0, width=64, height=48)
    known |= dict(duration=frames / 24, decoder=Decoder.pyav, access=Access.seek)
    known |= dict(index=index.pack(), bad_frames=0, digest="0")
    return Row(uri, **known | values)


def audio_only(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 8192), np.float32), format="fltp", layout="mono"
        )
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncated(path: Path, share: float = 0.6, **options: dict[str, str]) -> Path:
    """The first `share` of the bytes of a valid video; `options` go to `write_video`."""
    codec = "mpeg4" if path.suffix == ".avi" else "libx264"
    write_video(path, noise(), codec=codec, **options)  # type: ignore[arg-type]
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def zero_frames(path: Path) -> Path:
    """An AVI whose header declares a video stream, without any frame."""
    assert path.suffix == ".avi"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    return path


def garbage(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


def one_frame(path: Path) -> Path:
    return write_video(path, numbered_frames(1))


def write_copies(video: Path, root: Path, *names: str) -> None:
    """Copies of `video` below `root`, each with another last byte, so none is a duplicate."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(video.read_bytes() + bytes([index]))
