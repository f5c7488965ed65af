"""Measurements in separate processes: their JSON output, and the memory of a piece of work."""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Variables that place a process among ranks; a child process must not inherit them.
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STATUS = Path("/proc/self/status")


class Memory:
    """Bytes beyond those that the process held before."""

    peak: int = 0  # the largest at any time
    held: int = 0  # at the end


@contextlib.contextmanager
def measure_memory() -> Iterator[Memory]:
    """Resident memory of this process, as the kernel counts it; filled in at the end."""
    memory = Memory()
    # Free memory that the allocator kept from earlier work would hide what this work takes.
    ctypes.CDLL(None).malloc_trim(0)
    before = read_status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    yield memory
    memory.peak = read_status("VmHWM") - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    memory.held = read_status("VmRSS") - before


def read_status(name: str) -> int:
    """A size in /proc/self/status, such as VmRSS, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def run_json(
    module: str, *argv: str, ranks: int = 0, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON line that `python -m MODULE ARGV` prints; under torchrun if `ranks` is above 0.

    environment: variables to set in the process.
    """
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *(torchrun if ranks else []), "-m", module, *argv]
    env = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
    env |= environment or {}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
