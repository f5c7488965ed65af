"""Convert decoded frames to RGB as the ffmpeg command does, with FFmpeg's own filters."""

from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from mofore.data.orientation import Filter, orientation_filters, swaps_sides


class Converter:
    """Frames as decoded -> RGB u8 [H, W, 3] as shown, all of one size, as ffmpeg converts them."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._kind: tuple | None = None  # of the frames for which the filters are built

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        filters = display_filters(frame)
        size, colours = (frame.width, frame.height), (frame.colorspace, frame.color_range)
        kind = (size, frame.format.name, colours, tuple(filters))
        if kind != self._kind:
            self._graph, self._kind = self._build(frame, filters), kind
        self._graph.push(frame)
        return self._graph.vpull().to_ndarray()  # type: ignore[return-value]  # of rgb24

    def _build(self, frame: VideoFrame, filters: list[Filter]) -> Graph:
        graph = Graph()
        graph.threads = 1
        size = shown_size(frame)
        if size != (self.width, self.height):
            filters = [*filters, ("scale", f"{self.width}:{self.height}:flags=bicubic")]
        buffer = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1, 1000),
        )
        nodes = [graph.add(*parts) for parts in (*filters, ("format", "rgb24"))]
        graph.link_nodes(buffer, *nodes, graph.add("buffersink")).configure()
        return graph


def display_filters(frame: VideoFrame) -> list[Filter]:
    """Those that its display matrix asks for."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    return [] if data is None else orientation_filters(np.frombuffer(data, "=i4").tolist())


def shown_size(frame: VideoFrame) -> tuple[int, int]:
    """Width and height of a frame as it is shown, in pixels."""
    size = frame.width, frame.height
    return size[::-1] if swaps_sides(display_filters(frame)) else size
