"""The ffmpeg command: it makes files of every kind, and what it shows is the truth."""

import subprocess
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg

# Every frame differs from the others, in moving and in still parts.
PICTURES = ("-f", "lavfi", "-i", "testsrc2=size=160x96:rate=24:duration=5,noise=alls=8:allf=t")


class Shown(NamedTuple):
    """times: of the frames, in seconds, the first at 0. checksums: Adler-32 of their RGB pixels."""

    times: list[float]
    checksums: list[int]


def ffmpeg(*arguments: str | Path) -> bytes:
    """Run ffmpeg; its standard output."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *arguments]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def write(path: Path, *options: str | Path, source: tuple[str | Path, ...] = PICTURES) -> Path:
    """Encode or copy `source`; `options` stand before the path."""
    ffmpeg(*source, *options, path)
    return path


def shown(path: Path) -> Shown:
    """Every frame that ffmpeg decodes of the stream that it chooses, in order."""
    options = ("-an", "-fps_mode", "passthrough", "-enc_time_base", "demux")
    lines = ffmpeg(
        *("-i", path, *options, "-pix_fmt", "rgb24", "-f", "framehash", "-hash", "adler32", "-")
    )
    ticks, checksums, time_base = [], [], Fraction(1)
    for line in lines.decode().splitlines():
        if line.startswith("#tb 0:"):
            time_base = Fraction(line.split(":")[1].strip())
        elif not line.startswith("#"):
            _, _, pts, _, _, digest = line.split(",")
            ticks.append(int(pts))
            checksums.append(int(digest, 16))
    return Shown([float((tick - ticks[0]) * time_base) for tick in ticks], checksums)
