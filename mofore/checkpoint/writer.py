"""Writing one checkpoint: shares -> files -> one rename; and removing old ones.

    owned_shards   of what a rank holds, what it writes
    write_shards   one synced file in a folder with a temporary name; its size and digest
    commit         rank 0 adds checkpoint.json; a rename gives the folder its name

A reader finds a whole checkpoint or none.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mofore.checkpoint.format import (
    FORMAT,
    META_NAME,
    CheckpointConfig,
    list_checkpoints,
    meta_digest,
)
from mofore.checkpoint.layout import slice_key
from mofore.parallel.collectives import get_rank, get_world_size
from mofore.types import Shard

BLOCK_BYTES = 2**24  # written and digested at once


def owned_shards(shards: Iterable[Shard]) -> Iterator[Shard]:
    """What this rank writes: slices that it alone holds, and its part of replicated ones."""
    for rank, shard in split_replicated(list(shards), get_world_size()):
        if rank in (None, get_rank()):
            yield shard


def split_replicated(shards: Sequence[Shard], ranks: int) -> Iterator[tuple[int | None, Shard]]:
    """Cut what every rank holds into equal parts, one per rank: (rank, slice), in order.

    Slices that this rank alone holds come as they are, with None.
    """
    total = sum(len(shard.values) for shard in shards if shard.replicated)
    rank, done = 0, 0
    for shard in shards:
        if not shard.replicated:
            yield None, shard
            continue
        first, size = 0, len(shard.values)
        while first < size:
            while total * (rank + 1) // ranks <= done:
                rank += 1
            last = min(size, first + total * (rank + 1) // ranks - done)
            yield rank, Shard(shard.name, shard.start + first, shard.values[first:last], True)
            done, first = done + last - first, last


def file_header(shards: Sequence[Shard], shapes: dict[str, list[int]]) -> bytes:
    """What a safetensors file begins with: the length of a JSON object, and the object.

    It names the shards, whose values follow it one after the other. A whole tensor has its own name
    and shape, a slice is named NAME[START:STOP].
    """
    header: dict[str, Any] = {}
    at = 0
    for name, start, values, _ in shards:
        key = slice_key(name, start, start + len(values), math.prod(shapes[name]))
        shape, size = shapes[name] if key == name else [len(values)], 4 * len(values)
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shards(
    path: Path, shards: Sequence[Shard], buffer: Tensor, shapes: dict[str, list[int]]
) -> dict[str, Any]:
    """Write one safetensors file, synced to the disk; return its size and digest.

    `buffer` (f32) holds the values of the shards one after the other, so it is the body of the file
    as it is; the library's own writer would copy it twice.
    """
    header, body = file_header(shards, shapes), buffer.view(torch.uint8).numpy().data
    blocks: list[bytes | memoryview] = [header]
    blocks += [body[i : i + BLOCK_BYTES] for i in range(0, len(body), BLOCK_BYTES)]
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for block in blocks:
            digest.update(block)
            done = 0
            while done < len(block):
                done += file.write(block[done:])
        os.fsync(file.fileno())
    return {"bytes": len(header) + len(body), "sha256": digest.hexdigest()}


def commit(temporary: Path, final: Path, meta: dict[str, Any]) -> None:
    """On rank 0, once all files are written: add checkpoint.json, rename the folder."""
    document = {"format": FORMAT, **meta}
    document["digest"] = meta_digest(document)
    with (temporary / META_NAME).open("x") as file:
        file.write(json.dumps(document, indent=1))
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(temporary)
    if final.exists():
        remove(final)
    os.replace(temporary, final)
    _sync_folder(final.parent)


def prune(run_dir: Path, config: CheckpointConfig, keep: Iterable[Path] = ()) -> None:
    """Remove all but the newest `keep_last`, every `keep_every`-th step, and those in `keep`."""
    for step, path in list_checkpoints(run_dir)[: -config.keep_last]:
        if path not in keep and (config.keep_every is None or step % config.keep_every):
            remove(path)


def remove(folder: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a reader never finds half of one."""
    removing = folder.with_name(f".{folder.name}.removing")
    shutil.rmtree(removing, ignore_errors=True)
    os.replace(folder, removing)
    shutil.rmtree(removing)


def _sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, as fsync does for a file's bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
