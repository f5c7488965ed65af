"""Whether the decoding processes have the shared memory that they need.

A worker passes a batch as files of /dev/shm, one per tensor. Where /dev/shm is full the worker
loses the batch, and the rank would wait for it until engine.timeout.
"""

import math
import os
from pathlib import Path

from mofore.errors import UserError

SHARED_MEMORY = Path("/dev/shm")
GIB = 2**30


def batches_in_flight(workers: int, prefetch_factor: int) -> int:
    """Batches of one rank that are in shared memory at once: prefetched ones and the one in use."""
    return prefetch_factor * workers + 1


def check_shared_memory(
    batch_bytes: int, batches: int, ranks: int, smaller: str, folder: Path = SHARED_MEMORY
) -> None:
    """Raise UserError if `folder` has less free than the batches of all ranks of this machine need.

    batch_bytes: size of a batch. batches: of one rank, in flight. smaller: the key that makes a
    batch smaller. Does nothing on systems without such a folder.
    """
    if not folder.is_dir():
        return
    system = os.statvfs(folder)
    free, needed = system.f_bavail * system.f_frsize, batch_bytes * batches * ranks
    if free >= needed:
        return
    size = math.ceil((system.f_blocks * system.f_frsize - free + needed) / GIB) + 1
    raise UserError(
        f"{folder} has {_mib(free)} free, but the decoding processes need {_mib(needed)} of shared "
        f"memory: {batches} batches of {_mib(batch_bytes)} on {ranks} rank(s) of this machine. "
        f"In a container: `docker run --shm-size={size}g` or `--ipc=host`. Otherwise: fewer "
        f"workers, a smaller {smaller}, or workers=0, which decodes in the rank itself."
    )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
