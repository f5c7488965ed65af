"""How much memory of its own a piece of work takes at its peak, as the kernel counts it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

STATUS = Path("/proc/self/status")


class Peak:
    bytes: int = 0


@contextlib.contextmanager
def peak_of() -> Iterator[Peak]:
    """Within, `bytes` counts what this process holds beyond what it held before; it is set at the end."""
    peak = Peak()
    before = _read("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    yield peak
    peak.bytes = _read("VmHWM") - before


def _read(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
