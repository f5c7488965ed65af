"""What is wrong with a checkpoint, if anything, and which slices its files have.

A file that is verified has to be opened and read whole. So its header is read then too, and no rank
needs to open files later only to learn what is in them.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mofore.checkpoint.format import FORMAT, META_NAME, meta_digest
from mofore.checkpoint.layout import IncompleteError, Layout, read_slices
from mofore.parallel.collectives import broadcast_object, gather_objects, get_rank, get_world_size

THREADS = 8  # files at once: a shared file system takes milliseconds to open one

# A file's slices, as `read_slices` returns them, or what is wrong with the file.
FileReport = np.ndarray | str
NO_FILE_OF_OURS = (OSError, ValueError, KeyError, TypeError)


def read_meta(folder: Path) -> dict[str, Any] | str:
    """checkpoint.json, or what is wrong with it. One of another format is not damaged."""
    path = folder / META_NAME
    try:
        meta = json.loads(path.read_text())
        valid = meta["format"] != FORMAT or meta["digest"] == meta_digest(meta)
    except FileNotFoundError:
        return f"{path} is missing."
    except NO_FILE_OF_OURS as error:
        return f"{path} is damaged: {type(error).__name__} {error}."
    return meta if valid else f"{path} is damaged: its digest differs."


def verify(folder: Path, meta: dict[str, Any]) -> Layout | str:
    """Where each slice is, or what is wrong with the files; a collective.

    Each rank verifies its share of the files; rank 0 joins what they found.
    """
    shares = gather_objects(verify_share(folder, meta))
    return broadcast_object(join_shares(folder, meta, shares) if get_rank() == 0 else "")


def verify_share(folder: Path, meta: dict[str, Any]) -> list[FileReport]:
    """On rank r of n: reports of file r, r + n, r + 2n ..., in the order of their names."""
    names = sorted(meta["files"])[get_rank() :: get_world_size()]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda name: _verify_file(folder / name, meta), names))


def join_shares(folder: Path, meta: dict[str, Any], shares: list[list[FileReport]]) -> Layout | str:
    """From the shares of all ranks: where each slice is, or what is wrong with the first file."""
    reports = [shares[i % len(shares)][i // len(shares)] for i in range(len(meta["files"]))]
    faults = [report for report in reports if isinstance(report, str)]
    if faults:
        return faults[0]
    try:
        return Layout(meta["shapes"], [report for report in reports if not isinstance(report, str)])
    except IncompleteError as error:
        return f"{folder} is damaged: {error}."


def _verify_file(path: Path, meta: dict[str, Any]) -> FileReport:
    facts = meta["files"][path.name]
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != facts["bytes"]:
                return f"{path} is damaged: {size} bytes of {facts['bytes']}."
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                return f"{path} is damaged: its digest differs."
            file.seek(0)
            return read_slices(file, meta["shapes"])
    except FileNotFoundError:
        return f"{path} is missing."
    except NO_FILE_OF_OURS as error:
        return f"{path} is damaged: {type(error).__name__} {error}."
