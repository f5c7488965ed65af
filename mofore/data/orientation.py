"""The filters that show a frame as its display matrix says, as the ffmpeg command inserts them.

A display matrix has 3 x 3 fixed-point numbers (ISO/IEC 14496-12, 6.2.2). Phones write one instead
of turning the pixels.
"""

import math
from collections.abc import Sequence

Filter = tuple[str, str]  # name, arguments


def orientation_filters(matrix: Sequence[int]) -> list[Filter]:
    """The rules of get_rotation and configure_input_video_filter in FFmpeg's tools."""
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not (across and down):
        return []
    angle = round(math.degrees(math.atan2(b / down, a / across))) % 360
    if angle == 0:
        return [("vflip", "")] if d < 0 else []
    if angle == 90:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if angle == 180:
        return [(name, "") for name, value in (("hflip", a), ("vflip", d)) if value < 0]
    if angle == 270:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    return [("rotate", f"{angle}*PI/180")]


def swaps_sides(filters: Sequence[Filter]) -> bool:
    """Whether the shown frame has the coded frame's height as its width."""
    return any(name == "transpose" for name, _ in filters)
