"""Work in processes of its own: what they tell, and how much memory a piece of work takes there."""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PLACE = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)  # of this process among its ranks
STATUS = Path("/proc/self/status")


class Peak:
    bytes: int = 0  # at most, while within
    kept: int = 0  # at the end


@contextlib.contextmanager
def peak_of() -> Iterator[Peak]:
    """Counts what this process holds beyond what it held before; set at the end."""
    peak = Peak()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # what the allocator kept of earlier work would hide what this work takes
    before = _read("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    yield peak
    peak.bytes = _read("VmHWM") - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    peak.kept = _read("VmRSS") - before


def _read(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def as_user_error(module: str, *words: str, ranks: int = 0) -> dict[str, Any]:
    """The line of JSON that `python -m module words` prints; under torchrun where there are ranks."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        if ranks
        else []
    )
    command = [sys.executable, *launcher, "-m", module, *words]
    own = {key: value for key, value in os.environ.items() if key not in PLACE}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
