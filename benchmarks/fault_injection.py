"""Faults inside a rank: death within an operation, and disks that are full or read-only."""

import contextlib
import os
import resource
import signal
import subprocess
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mofore.step
from mofore.checkpoint import saver, writer

# Where a rank can be killed: the function that is replaced by one that dies at its n-th call.
# Operations of the standard library are replaced for the checkpoint writer alone.
KILL_POINTS: dict[str, tuple[Any, str]] = {
    "step": (mofore.step, "backward_and_step"),
    "snapshot": (saver, "owned_shards"),
    "write": (writer, "hashlib.sha256"),
    "sync": (writer, "os.fsync"),
    "commit": (saver, "commit"),
    "rename": (writer, "os.replace"),
    "prune": (saver, "prune"),
    "removal": (writer, "shutil.rmtree"),
}
RANK_0_POINTS = ("commit", "rename", "prune", "removal")  # operations of rank 0 alone
MAX_CALLS = {"write": 100, "rename": 4}  # the call that kills is drawn up to this one, else up to 6
SMALL_BLOCK = 4096  # bytes; many blocks per file, so that a rank can die between two of them
DISK_BYTES = "16m"


def kill_at(point: str, nth: int) -> None:
    """Make this process kill itself at the n-th call of a kill point's function."""
    module, name = KILL_POINTS[point]
    package, _, function = name.rpartition(".")
    if package:
        replaced = _copy_module(getattr(module, package))
        setattr(module, package, replaced)
        module = replaced
    original, calls = getattr(module, function), 0

    def count() -> bool:
        nonlocal calls
        calls += 1
        return calls == nth

    if point == "write":
        writer.BLOCK_BYTES = SMALL_BLOCK
        setattr(module, function, lambda: _KillingDigest(original(), count))
        return

    def killing(*args, **kwargs):
        if count():
            if point == "removal":  # part of the folder is already gone
                next(iter(Path(args[0]).iterdir())).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, function, killing)


class _KillingDigest:
    """A hash that kills the process at the n-th block, between two writes."""

    def __init__(self, digest: Any, count: Callable[[], bool]) -> None:
        self.digest, self.count = digest, count
        self.hexdigest = digest.hexdigest

    def update(self, block: bytes) -> None:
        if self.count():
            os.kill(os.getpid(), signal.SIGKILL)
        self.digest.update(block)


def _copy_module(module: types.ModuleType) -> types.ModuleType:
    """A module with the same names, so that a replacement does not reach other users."""
    copy = types.ModuleType(module.__name__)
    copy.__dict__.update(module.__dict__)
    return copy


def fill_disk_at(disk: Path, mounted: bool, nth: int) -> None:
    """From this rank's n-th checkpoint file on, nothing more can be written.

    mounted: `disk` is a tmpfs, which is filled; otherwise this process may write no large file.
    """
    original, calls = saver.write_shards, 0

    def write_shards(*args):
        nonlocal calls
        calls += 1
        if calls == nth and mounted:
            with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
                while True:
                    file.write(bytes(2**16))
        elif calls >= nth and not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
        return original(*args)

    saver.write_shards = write_shards  # type: ignore[assignment]


def mount_tmpfs(folder: Path) -> bool:
    """Whether it could be mounted: that needs privileges."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def make_read_only(folder: Path) -> bool:
    """Mount the folder read-only over itself; False if that fails, as while a file is written."""
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        return False
    remount = ["mount", "-o", "remount,ro,bind", str(folder)]
    for _ in range(50):
        if subprocess.run(remount, capture_output=True).returncode == 0:
            return True
        time.sleep(0.01)
    unmount(folder)
    return False


def unmount(folder: Path) -> None:
    subprocess.run(["umount", folder], check=True)
