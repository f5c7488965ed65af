"""decode: the written frames and times are read back, in any order, from any container."""

import os
from contextlib import AbstractContextManager
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch

from mofore.data.decode import Reader, open_video, read_frames, read_views
from mofore.data.manifest import Access
from mofore.data.storage import DecodeError
from mofore.data.verify import verify_video
from tests import videos

B_FRAMES = {"bf": "2", "g": "6"}


def open_path(path) -> AbstractContextManager[Reader]:
    return open_video(verify_video(str(path)).video)


def test_frames_are_returned_in_the_requested_order(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(), options=B_FRAMES)
    wanted = [31, 7, 7, 39, 0, 18]
    with open_path(path) as reader:
        assert videos.frame_numbers(read_frames(reader, wanted)) == wanted
        again = read_frames(reader, range(20, 25))  # a reader can be used repeatedly
        assert videos.frame_numbers(again) == [20, 21, 22, 23, 24]


def test_views_of_a_few_frames_at_a_time(tmp_path, monkeypatch):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames())
    monkeypatch.setattr("mofore.data.decode.CHUNK_BYTES", 3 * 64 * 64 * 3)
    wanted, lengths = [31, 7, 7, 39, 0, 18], []

    def view(frames):
        lengths.append(len(frames))
        return torch.from_numpy(frames)

    with open_path(path) as reader:
        views = read_views(reader, wanted, view)
    assert videos.frame_numbers(views.numpy()) == wanted
    assert lengths == [3, 2]  # each frame once


def test_times_follow_the_timestamps(tmp_path):
    """Frames 33 and 200 ms apart, starting at 1 s: the mean rate would give other times."""
    times = np.cumsum(np.tile([0.033, 0.2], 15))
    path = videos.write_video(
        tmp_path / "vfr.mp4", videos.numbered_frames(30), timestamps=1 + times
    )
    video = verify_video(str(path)).video
    assert video.frame_index().times == pytest.approx(times - times[0], abs=1e-3)
    with open_video(video) as reader:
        assert videos.frame_numbers(read_frames(reader, [29, 3])) == [29, 3]
    assert video.fps == pytest.approx(29 / (times[-1] - times[0]), rel=1e-3)
    assert 0 < video.duration - (times[-1] - times[0]) <= 0.21


@pytest.mark.parametrize("size", [(96, 54), (54, 96), (63, 47), (40, 122)])
def test_any_height_and_width(tmp_path, size):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(10, *size))
    video = verify_video(str(path)).video
    assert (video.height, video.width) == size
    with open_video(video) as reader:
        assert read_frames(reader, [4]).shape == (1, *size, 3)


def test_member_of_a_larger_file(tmp_path):
    """Two videos in one file, each read by its byte range."""
    first = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(20)).read_bytes()
    second = videos.write_video(tmp_path / "b.mp4", videos.numbered_frames(30)).read_bytes()
    shard = tmp_path / "shard.bin"
    shard.write_bytes(first + second)
    alone = verify_video(str(tmp_path / "b.mp4"))
    for uri in (str(shard), f"file://{shard}"):
        found = verify_video(uri, len(first), len(second))
        assert found.digest == alone.digest
        assert found.video == replace(alone.video, uri=uri, offset=len(first))
        with open_video(found.video) as reader:
            assert videos.frame_numbers(read_frames(reader, [29, 0])) == [29, 0]
    with pytest.raises(DecodeError, match="ends inside this member"):
        verify_video(str(shard), len(first), len(second) + 1)


def test_bytes_are_read_from_another_file_system(tmp_path):
    data = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(20)).read_bytes()
    with fsspec.open("memory://decode/a.mp4", "wb") as file:
        file.write(data)
    with open_path("memory://decode/a.mp4") as reader:
        assert videos.frame_numbers(read_frames(reader, [11, 2])) == [11, 2]
    with pytest.raises(DecodeError, match="no such file"):
        verify_video("memory://decode/b.mp4")


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def replaced(path):
    """Another video of the same number of bytes."""
    size = path.stat().st_size
    shorter = videos.write_video(path, videos.numbered_frames(4)).read_bytes()
    path.write_bytes(shorter + bytes(size - len(shorter)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut_short, r"it has \d+ bytes in place of \d+: the file has changed"),
        (replaced, "is missing: the file has changed"),
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "it has 0 bytes in place of"),
    ],
)
@pytest.mark.parametrize("access", Access)
def test_a_file_that_changed_is_noticed(tmp_path, change, reason, access):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames())
    video = replace(verify_video(str(path)).video, access=access)
    change(path)
    with (
        pytest.raises(DecodeError, match=reason),
        open_video(video) as reader,
    ):
        read_frames(reader, [1, 35])


@pytest.mark.parametrize("name", ["a:b.mp4", "100%d.mp4", "file:c.mp4", "#d.mp4", "ü é.mp4"])
def test_any_file_name(tmp_path, monkeypatch, name):
    """FFmpeg takes what stands before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(10))
    path.rename(tmp_path / name)
    with open_path(name) as reader:
        assert videos.frame_numbers(read_frames(reader, [7])) == [7]


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
        ("truncated.avi", videos.truncated, r"cut off: \d\.\d\d of 1\.67 s can be decoded"),
        (
            "truncated_faststart.mp4",
            lambda path: videos.truncated(path, container_options={"movflags": "faststart"}),
            r"\d+ of 40 frames cannot be decoded or are missing",
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
