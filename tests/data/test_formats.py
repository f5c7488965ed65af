"""Every kind of file: `prepare` and training get the frames and the times that ffmpeg shows."""

import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mofore.data.decode import open_video, read_frames
from mofore.data.manifest import Access, Decoder, Video
from mofore.data.prepare import prepare
from mofore.data.storage import DecodeError
from mofore.data.verify import verify_video
from mofore.errors import UserError
from tests.ffmpeg import Shown, shown, write

H264, MPEG4 = ("-c:v", "libx264", "-preset", "fast"), ("-c:v", "mpeg4", "-q:v", "3")
HEVC = ("-c:v", "libx265", "-preset", "fast", "-x265-params")
ENCODED = {
    "b_frames.mp4": (*H264, "-g", "48"),
    "one_key_frame.mp4": (*H264, "-g", "1000"),
    "open_gop.mp4": (*H264, "-x264-params", "open-gop=1:keyint=24:bframes=3"),
    "intra_refresh.ts": (*H264, "-x264-params", "intra-refresh=1:keyint=24"),
    "intra_refresh.mp4": (*H264, "-x264-params", "intra-refresh=1:keyint=24"),
    "hevc.mp4": (*HEVC, "log-level=none"),
    "hevc_keyint.mp4": (*HEVC, "log-level=none:keyint=60"),
    "hevc_10_bits.mp4": (*HEVC, "log-level=none:keyint=30", "-pix_fmt", "yuv420p10le"),
    "av1.mp4": ("-c:v", "libsvtav1", "-preset", "10", "-g", "48"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-g", "48"),
    "vp8.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-g", "48"),
    "streamed.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-live", "1", "-f", "webm"),
    "mpeg4_b_frames.avi": (*MPEG4, "-bf", "2", "-g", "24"),
    "mpeg4_b_frames.mkv": (*MPEG4, "-bf", "2", "-g", "24"),
    "h264.avi": (*H264, "-g", "24"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-g", "12"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-g", "12"),
    "camcorder.ts": (*H264, "-g", "12"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "3"),
    "animation.gif": ("-r", "12"),
    "theora.ogv": ("-c:v", "libtheora", "-q:v", "6"),
    "flash.flv": ("-c:v", "flv", "-q:v", "3"),
    "windows.wmv": ("-c:v", "wmv2", "-q:v", "3"),
    "prores.mov": ("-c:v", "prores_ks"),
    "lossless.mkv": ("-c:v", "ffv1"),
    "fragments.mp4": (*H264, "-movflags", "frag_keyframe+empty_moov", "-g", "24"),
    "raw.h264": (*H264, "-g", "24", "-bf", "0"),
    "interlaced.mp4": (*H264, "-flags", "+ilme+ildct", "-g", "24"),
    "full_range.mp4": (*H264, "-pix_fmt", "yuvj420p"),
    "bt709.mp4": (*H264, "-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709"),
    "wide_pixels.mp4": (*H264, "-vf", "setsar=4/3"),
    "width_2.mp4": (*H264, "-vf", "scale=2:2"),
    "width_24.mp4": (*H264, "-vf", "scale=24:16"),
    "width_72.mp4": (*H264, "-vf", "scale=72:40"),
    "odd_size.mp4": (*H264, "-vf", "scale=63:47", "-pix_fmt", "yuv444p"),
    "odd_size.mkv": ("-c:v", "ffv1", "-vf", "scale=63:47", "-pix_fmt", "yuv420p"),
    "variable_rate.mp4": (*H264, "-vf", "select='not(mod(n,5))+lt(n,20)'", "-fps_mode", "vfr"),
    "late_start.mp4": (*H264, "-output_ts_offset", "3"),
}
REMUXED = {  # of b_frames.mp4
    "copied_cut.mp4": (("-ss", "1.3", "-i"), ()),
    "edit_list_tail.mp4": (("-i",), ("-t", "2.5")),
    "turned_90.mp4": (("-display_rotation", "90", "-i"), ()),
    "turned_180.mp4": (("-display_rotation", "180", "-i"), ()),
    "turned_270.mp4": (("-display_rotation", "270", "-i"), ()),
    "mirrored.mp4": (("-display_hflip", "-i"), ()),
    "flipped.mp4": (("-display_vflip", "-i"), ()),
    "turned_and_mirrored.mp4": (("-display_rotation", "90", "-display_hflip", "-i"), ()),
    "negative_offsets.mp4": (("-i",), ("-movflags", "negative_cts_offsets")),
    "turned_30.mp4": (("-display_rotation", "30", "-i"), ()),
}
IN_ORDER = {"raw.h264", "h264.avi"}  # no other file needs to be decoded from its first frame


def read_as(video: Video, wanted: list[int]) -> list[int]:
    with open_video(video) as reader:
        return [zlib.adler32(frame.tobytes()) for frame in read_frames(reader, wanted)]


def check(path: Path, truth: Shown) -> Video:
    """All frames, and the runs and single frames that samples read, are the right ones."""
    video = verify_video(str(path)).video
    assert video.frames == len(truth.checksums)
    assert video.frame_index().times == pytest.approx(truth.times, abs=1e-6)
    assert read_as(video, list(range(video.frames))) == truth.checksums
    rng = np.random.default_rng(0)
    for _ in range(8):
        start = int(rng.integers(0, max(1, video.frames - 12)))
        wanted = [*range(start, min(start + 12, video.frames), 2), int(rng.integers(video.frames))]
        assert read_as(video, wanted) == [truth.checksums[number] for number in wanted]
    return video


@pytest.mark.parametrize("name", ENCODED)
def test_frames_and_times_are_those_of_ffmpeg(tmp_path, name):
    path = write(tmp_path / name, *ENCODED[name])
    video = check(path, shown(path))
    assert (video.access is Access.order) == (name in IN_ORDER)


@pytest.mark.parametrize("name", REMUXED)
def test_files_that_are_copied_without_encoding(tmp_path, name):
    whole = write(tmp_path / "whole.mp4", *H264, "-g", "24")
    before, after = REMUXED[name]
    path = write(tmp_path / name, "-c", "copy", *after, source=(*before, whole))
    assert check(path, shown(path)).access is Access.seek


def pack_b_frames(source: Path, path: Path) -> Path:
    """What DivX and XviD write in AVI: a frame and the B-frame before it in one packet, and then a
    packet that says "not coded".
    """
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        data = [bytes(packet) for packet in packets]
        is_b = [_vop_type(part) == B_VOP for part in data]
        for number in range(len(data) - 1):
            if is_b[number + 1] and not is_b[number]:
                data[number] += data[number + 1]
                data[number + 1] = NOT_CODED
        data[0] = PACKED_MARK + data[0]
        for number, part in enumerate(data):
            packet = av.Packet(part)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 24), stream
            packet.is_keyframe = packets[number].is_keyframe
            out.mux(packet)
    return path


B_VOP, NOT_CODED = 2, b"\0\0\1\xb6\x51\x80\x7f"  # a P-frame with vop_coded = 0
PACKED_MARK = b"\0\0\1\xb2DivX503b1393p"


def _vop_type(packet: bytes) -> int:
    return packet[packet.index(b"\0\0\1\xb6") + 4] >> 6


def test_packed_b_frames(tmp_path):
    """UT-Interaction's files: the header counts more frames than there are."""
    plain = write(tmp_path / "plain.avi", *MPEG4, "-bf", "1", "-g", "24")
    path = pack_b_frames(plain, tmp_path / "packed.avi")
    truth = shown(path)
    assert len(truth.checksums) >= 118
    check(path, truth)


def test_a_resolution_that_changes(tmp_path):
    """Later frames are scaled to the size of the first one."""
    parts = [
        write(tmp_path / "first.ts", *H264, "-g", "24"),
        write(tmp_path / "then.ts", *H264, "-vf", "scale=96:64", "-output_ts_offset", "5"),
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = check(path, shown(path))
    assert (video.width, video.height, video.frames) == (160, 96, 240)


def test_an_avi_without_its_index(tmp_path):
    path = write(tmp_path / "a.avi", *MPEG4, "-bf", "2", "-g", "24")
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"idx1")])
    check(path, shown(path))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_cover_picture_is_not_the_video(tmp_path, order):
    whole = write(tmp_path / "whole.mp4", *H264)
    cover = write(tmp_path / "cover.png", "-frames:v", "1", "-vf", "scale=640:384")
    maps = [part for number in order for part in ("-map", str(number))]
    attached = f"-disposition:v:{order.index(1)}"
    path = write(
        tmp_path / "covered.mp4",
        *(*maps, "-c", "copy", attached, "attached_pic"),
        source=("-i", whole, "-i", cover),
    )
    assert check(path, shown(whole)).frames == 120
    only = write(
        tmp_path / "cover.mp3",
        *("-map", "0", "-map", "1", "-c:v", "copy"),
        source=(*("-f", "lavfi", "-t", "1", "-i", "sine"), "-i", cover),
    )
    with pytest.raises(DecodeError, match=r"no video stream \(only a cover picture\)"):
        verify_video(str(only))


def test_the_largest_of_several_streams(tmp_path):
    small = write(tmp_path / "small.mp4", *H264, "-vf", "scale=96:64")
    large = write(tmp_path / "large.mp4", *H264)
    path = write(
        tmp_path / "both.mkv",
        *("-map", "0", "-map", "1", "-c", "copy", "-disposition:v", "0"),
        source=("-i", small, "-i", large),
    )
    video = check(path, shown(path))
    assert (video.width, video.height) == (160, 96)


def test_a_few_frames_that_cannot_be_decoded_are_left_out(tmp_path):
    path = write(tmp_path / "a.mkv", *H264, "-g", "24", "-bf", "0")
    whole = shown(path)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    data = path.read_bytes()
    damaged = packets[40]
    path.write_bytes(data.replace(damaged, bytes(len(damaged))))
    found = verify_video(str(path))
    assert 1 <= found.bad_frames <= 8  # up to the next key frame
    assert found.video.frames + found.bad_frames >= 112
    times = found.video.frame_index().times
    assert set(np.round(times * 24).astype(int)) < set(range(120))
    numbers = [int(number) for number in np.round(times * 24)]
    read = read_as(found.video, list(range(found.video.frames)))
    before = numbers.index(39) + 1
    assert read[:before] == whole.checksums[:before]
    after = numbers.index(48)  # a key frame
    assert read[after:] == whole.checksums[48:]
    with pytest.raises(DecodeError, match="frames cannot be decoded or are missing"):
        verify_video(str(path), max_bad_share=0)


@pytest.mark.parametrize(
    ("decoder", "seeks"),
    [
        (Decoder.pyav, {"good.mp4", "open_gop.mp4", "b_frames.avi"}),
        (Decoder.decord, {"good.mp4"}),
        (Decoder.torchcodec, {"good.mp4", "open_gop.mp4"}),
    ],
)
def test_a_decoder_is_used_where_it_returns_the_same_frames(tmp_path, decoder, seeks):
    """decord and torchcodec silently seek to other frames in some of these files."""
    files = {
        "good.mp4": (*H264, "-g", "24"),
        "open_gop.mp4": (*HEVC, "log-level=none:keyint=60"),
        "b_frames.avi": (*MPEG4, "-bf", "2", "-g", "24"),
    }
    for name, options in files.items():
        path = write(tmp_path / name, *options)
        video = verify_video(str(path), decoders=[decoder]).video
        if name in seeks:
            assert (video.decoder, video.access) == (decoder, Access.seek)
        else:
            assert (video.decoder, video.access) == (Decoder.pyav, Access.order)
        assert read_as(video, list(range(video.frames))) == shown(path).checksums


def test_a_decoder_that_is_not_installed_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", *H264)
    video = verify_video(str(path), decoders=[Decoder.torchcodec]).video
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with (
        pytest.raises(UserError, match=r"torchcodec cannot be used.*pip install"),
        open_video(video),
    ):
        pass
    with pytest.raises(UserError, match=r"torchcodec cannot be used.*pip install"):
        prepare(tmp_path, tmp_path / "out", decoders=[Decoder.torchcodec])
