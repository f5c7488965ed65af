"""Which file of a checkpoint has which slice of which tensor.

A rank opens only the files that it reads. So the ranks read the headers of all files together, each
those of its share, and rank 0 sends this layout to all of them.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

SLICE_KEY = re.compile(r"(.*)\[(\d+):(\d+)\]")  # NAME[START:STOP], a slice of a flattened tensor
MAX_HEADER_BYTES = 10**8  # as the safetensors format has it

Shapes = dict[str, list[int]]  # of every tensor, by its name


class IncompleteError(ValueError):
    """The slices of a tensor do not make up the tensor."""


def slice_key(name: str, start: int, stop: int, size: int) -> str:
    """The key of a slice in a safetensors file; a whole tensor has its own name."""
    return name if stop - start == size else f"{name}[{start}:{stop}]"


def read_slices(file: BinaryIO, shapes: Shapes) -> np.ndarray:
    """The slices in an open file: i64 [n, 3], each the tensor's position in `shapes`, start, stop.

    Raises ValueError, KeyError or TypeError if this is no file of a checkpoint of these tensors.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    positions, rows = {name: i for i, name in enumerate(shapes)}, []
    for key in json.loads(file.read(length)):
        match = SLICE_KEY.fullmatch(key)
        name = match[1] if match else key
        start, stop = map(int, match.groups()[1:]) if match else (0, math.prod(shapes[name]))
        rows.append((positions[name], start, stop))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


class Layout:
    """The slices of all tensors, sorted by tensor and start: 12 bytes per slice.

    Raises IncompleteError if the slices of a tensor overlap or leave a gap.
    """

    def __init__(self, shapes: Shapes, files: Sequence[np.ndarray]) -> None:
        """files: the slices of each file, as `read_slices` returns them."""
        numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(each) for each in files])
        tensors, starts, stops = np.concatenate([np.empty((0, 3), np.int64), *files]).T
        order = np.lexsort((starts, tensors))
        order = order[starts[order] < stops[order]]  # a tensor without elements has no slice
        tensors, stops = tensors[order], stops[order]
        self.positions = {name: i for i, name in enumerate(shapes)}
        self.sizes = [math.prod(shape) for shape in shapes.values()]
        self.starts, self.files = starts[order], numbers[order]
        # slices bounds[i] to bounds[i + 1] belong to tensor i
        self.bounds = np.searchsorted(tensors, np.arange(len(shapes) + 1))
        first = np.diff(tensors, prepend=-1) != 0
        wrong = tensors[self.starts != np.where(first, 0, np.roll(stops, 1))].tolist()
        ends = np.zeros(len(shapes), dtype=np.int64)
        ends[tensors] = stops  # the last slice of a tensor comes last
        wrong += np.flatnonzero(ends != self.sizes).tolist()
        if wrong:
            raise IncompleteError(f"its files do not make up {list(shapes)[min(wrong)]}")

    def find(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(start, stop, file number) of the slices that overlap start..stop of a flat tensor."""
        tensor = self.positions[name]
        of_tensor = slice(self.bounds[tensor], self.bounds[tensor + 1])
        edges, files = np.append(self.starts[of_tensor], self.sizes[tensor]), self.files[of_tensor]
        low = int(np.searchsorted(edges, start, side="right")) - 1
        high = int(np.searchsorted(edges, stop)) if start < stop else low
        for i in range(low, high):
            yield int(edges[i]), int(edges[i + 1]), int(files[i])
