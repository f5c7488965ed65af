"""How a checkpoint comes to be: shares -> files -> one rename; and how old ones go.

    share_of       of what a rank holds, what it writes
    write_pieces   rank-R.safetensors in a folder with a temporary name, on the disk, with size and digest
    commit         rank 0 adds checkpoint.json, which names files, digests and shapes; a rename gives the folder its name

A reader finds the whole of a checkpoint, or none of it.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mofore.distributed import rank, world
from mofore.errors import UserError
from mofore.listing import committed
from mofore.types import Piece

FORMAT = 2
META = "checkpoint.json"
SLAB = 2**24  # bytes written and digested at once


@dataclass
class CheckpointConfig:
    every: int = 1000  # steps between two checkpoints
    keep_last: int = 2  # the newest to keep; older ones are removed
    keep_every: int | None = None  # and those of steps that this divides, for good
    upload: str | None = None  # fsspec URL of a folder that each is copied to, behind the run

    def __post_init__(self) -> None:
        if min(self.every, self.keep_last) < 1 or (self.keep_every is not None and self.keep_every < 1):
            raise UserError(
                f"checkpoint.every={self.every}, checkpoint.keep_last={self.keep_last} and "
                f"checkpoint.keep_every={self.keep_every} must be at least 1."
            )


def share_of(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """What this rank writes: the runs that it alone holds, and of what all hold, one of `world` equal runs."""
    pieces = list(pieces)
    total, at = sum(len(piece.values) for piece in pieces if piece.shared), 0
    low, high = total * rank() // world(), total * (rank() + 1) // world()
    for name, start, values, shared in pieces:
        if not shared:
            yield Piece(name, start, values, False)
            continue
        first, last = max(low - at, 0), min(high - at, len(values))
        if first < last:
            yield Piece(name, start + first, values[first:last], True)
        at += len(values)


def write_pieces(
    path: Path, pieces: Sequence[Piece], buffer: Tensor, shapes: dict[str, list[int]]
) -> dict[str, Any]:
    """One safetensors file, on the disk when this returns; and its size and digest.

    `buffer` holds the values of the pieces one after the other, so it is the file's body as it is. The library's
    writer would copy all of it twice, beside the training. A whole tensor has its own name and shape, a run of
    one is called NAME[START:STOP].
    """
    header: dict[str, Any] = {}
    at = 0
    for name, start, values, _ in pieces:
        stop, size = start + len(values), 4 * len(values)
        whole = len(values) == math.prod(shapes[name])
        key, shape = (name, shapes[name]) if whole else (f"{name}[{start}:{stop}]", [len(values)])
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = buffer.view(torch.uint8).numpy().data
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    parts += [body[i : i + SLAB] for i in range(0, at, SLAB)]
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for part in parts:
            digest.update(part)
            done = 0
            while done < len(part):
                done += file.write(part[done:])
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + at, "sha256": digest.hexdigest()}


def commit(draft: Path, final: Path, meta: dict[str, Any]) -> None:
    """Rank 0 alone, once all files are written: name them in checkpoint.json, and give the folder its name."""
    about = {"format": FORMAT, **meta}
    with (draft / META).open("x") as file:
        file.write(json.dumps(about | {"digest": digest_of(about)}, indent=1))
        file.flush()
        os.fsync(file.fileno())
    _sync(draft)
    if final.exists():
        remove(final)
    os.replace(draft, final)
    _sync(final.parent)


def digest_of(meta: dict[str, Any]) -> str:
    """SHA-256 (hex) of everything in checkpoint.json but itself."""
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def prune(run_dir: Path, config: CheckpointConfig, keep: Iterable[Path] = ()) -> None:
    """Remove all but the newest `keep_last`, every `keep_every`-th step, and `keep`."""
    for step, path in committed(run_dir)[: -config.keep_last]:
        if path not in keep and (config.keep_every is None or step % config.keep_every):
            remove(path)


def remove(folder: Path) -> None:
    """A folder loses its name first, so that a reader never finds half of one."""
    gone = folder.with_name(f".{folder.name}.removing")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone)


def _sync(folder: Path) -> None:
    """Names on the disk, as fsync does for bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
