"""decode: the written frames and times are read back, in any order, from any container."""

import os

import av
import fsspec
import numpy as np
import pytest

from mofore.data.decode import DecodeError, frame_times, open_video, read_frames
from mofore.data.manifest import Video
from mofore.data.verify import verify_video
from tests import videos

B_FRAMES = {"bf": "2", "g": "6"}


@pytest.mark.parametrize(
    ("name", "codec", "options", "seekable"),
    [
        ("plain.mp4", "libx264", {}, True),
        ("b.mp4", "libx264", B_FRAMES, True),
        ("plain.avi", "mpeg4", {"g": "6"}, True),
        ("xvid.avi", "mpeg4", B_FRAMES, False),
        ("h264.avi", "libx264", B_FRAMES, False),
        ("tape.mpg", "mpeg2video", {"g": "6"}, False),
    ],
)
def test_frames_are_returned_in_the_requested_order(tmp_path, name, codec, options, seekable):
    """Containers without presentation times are those where plain decord returns other frames."""
    frames = videos.numbered_frames()
    path = videos.write_video(tmp_path / name, frames, codec=codec, options=options)
    wanted = [31, 7, 7, 39, 0, 18]
    reader = open_video(str(path))
    assert reader.seekable is seekable
    assert videos.frame_numbers(read_frames(reader, wanted)) == wanted
    again = read_frames(reader, range(20, 25))  # a reader can be used repeatedly
    assert videos.frame_numbers(again) == [20, 21, 22, 23, 24]
    assert frame_times(reader) == pytest.approx(np.arange(40) / 24, abs=1e-3)


def test_frames_match_another_decoder(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.noise(12, 62, 46))
    frames = read_frames(open_video(str(path)), range(12))
    assert frames.dtype == np.uint8
    assert frames.shape == (12, 62, 46, 3)
    with av.open(str(path)) as container:
        expected = np.stack(
            [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        )
    assert np.abs(frames.astype(int) - expected).max() <= 2


def test_times_follow_the_timestamps(tmp_path):
    """Frames 33 and 200 ms apart, starting at 1 s: the mean rate would give other times."""
    times = np.cumsum(np.tile([0.033, 0.2], 15))
    path = videos.write_video(
        tmp_path / "vfr.mp4", videos.numbered_frames(30), timestamps=1 + times
    )
    reader = open_video(str(path))
    assert frame_times(reader) == pytest.approx(times - times[0], abs=1e-3)
    assert videos.frame_numbers(read_frames(reader, [29, 3])) == [29, 3]
    info = verify_video(str(path))
    assert info.fps == pytest.approx(29 / (times[-1] - times[0]), rel=1e-3)
    assert info.duration == pytest.approx(30 / info.fps)


@pytest.mark.parametrize("indices", [[-1], [0, 40], [3, -2, 5]])
def test_indices_out_of_range_raise(tmp_path, indices):
    reader = open_video(str(videos.write_video(tmp_path / "a.mp4", videos.numbered_frames())))
    with pytest.raises(IndexError, match="has frames 0 to 39"):
        read_frames(reader, indices)


@pytest.mark.parametrize("size", [(96, 54), (54, 96), (63, 47), (40, 122)])
def test_any_height_and_width(tmp_path, size):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(10, *size))
    info = verify_video(str(path))
    assert (info.height, info.width) == size
    assert read_frames(open_video(str(path)), [4]).shape == (1, *size, 3)


def test_member_of_a_larger_file(tmp_path):
    """Two videos in one file, each read by its byte range."""
    first = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(20)).read_bytes()
    second = videos.write_video(tmp_path / "b.mp4", videos.numbered_frames(30)).read_bytes()
    shard = tmp_path / "shard.bin"
    shard.write_bytes(first + second)
    for uri in (str(shard), f"file://{shard}"):
        video = Video(uri, len(first), len(second), 30, 24.0, 64, 64, 1.25)
        reader = open_video(video)
        assert len(reader) == 30
        assert videos.frame_numbers(read_frames(reader, [29, 0])) == [29, 0]
    assert verify_video(str(shard), len(first), len(second)) == verify_video(
        str(tmp_path / "b.mp4")
    )
    with pytest.raises(DecodeError, match="ends inside this member"):
        verify_video(str(shard), len(first), len(second) + 1)


def test_bytes_are_read_from_another_file_system(tmp_path):
    data = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(20)).read_bytes()
    with fsspec.open("memory://decode/a.mp4", "wb") as file:
        file.write(data)
    assert videos.frame_numbers(read_frames(open_video("memory://decode/a.mp4"), [11, 2])) == [
        11,
        2,
    ]
    with pytest.raises(DecodeError, match="no such file"):
        open_video("memory://decode/b.mp4")


def overwritten(path):
    data = bytearray(videos.write_video(path, videos.noise()).read_bytes())
    middle, hole = len(data) // 2, len(data) // 4
    data[middle : middle + hole] = bytes(hole)
    path.write_bytes(data)


def without_first_key_frame(path):
    """H.264 whose first frames cannot be decoded: plain decord returns others in their place."""
    complete = videos.write_video(
        path.with_name("complete.mp4"), videos.numbered_frames(), options={"g": "20", "bf": "0"}
    )
    with av.open(str(complete)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if index and packet.size:
                packet.stream = stream
                target.mux(packet)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("none.mp4", lambda path: path, "no such file"),
        ("folder.mp4", lambda path: path.mkdir(), "Is a directory"),
        ("empty.mp4", videos.empty, "empty file"),
        ("noise.mp4", videos.garbage, "not a video or damaged: Invalid data found"),
        ("sound.mp4", videos.audio_only, r"no video stream \(audio only\)"),
        ("zero.avi", videos.zero_frames, "zero frames"),
        ("one.mp4", videos.one_frame, "one frame: a video needs at least two"),
        ("truncated.mp4", videos.truncated, "not a video or damaged"),
        ("truncated.avi", videos.truncated, r"truncated: only \d+ of 40 frames are complete"),
        (
            "truncated_faststart.mp4",
            lambda path: videos.truncated(path, container_options={"movflags": "faststart"}),
            r"truncated: only \d+ of 40 frames are complete",
        ),
        ("overwritten.mp4", overwritten, r"damaged: .* \(between frames 16 and 32 of 40\)"),
        (
            "headless.mp4",
            without_first_key_frame,
            r"damaged: some frames cannot .* \(between frames 16 and 32 of 39\)",
        ),
    ],
)
def test_the_reason_why_a_file_is_refused(tmp_path, name, make, reason):
    make(tmp_path / name)
    with pytest.raises(DecodeError, match=reason) as refused:
        verify_video(str(tmp_path / name))
    assert "\n" not in refused.value.reason
    assert ".cc:" not in refused.value.reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files of any mode")
def test_a_file_without_permission_is_refused(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(5))
    path.chmod(0)
    with pytest.raises(DecodeError, match="no permission to read it"):
        verify_video(str(path))


def test_a_file_with_wrong_seeking_is_refused(tmp_path):
    """MPEG-4 with B-frames in Matroska has all timestamps, yet decord seeks to other frames."""
    path = videos.write_video(tmp_path / "a.mkv", videos.noise(60), codec="mpeg4", options=B_FRAMES)
    assert open_video(str(path)).seekable
    with pytest.raises(DecodeError, match="seeking returns other frames"):
        verify_video(str(path))
