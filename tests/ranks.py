"""Starts several gloo ranks on this machine, as a user would: torchrun."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def torchrun(world: int, module: str, *arguments: str, timeout: float = 300) -> str:
    """Run `module` on `world` ranks and return what it printed; AssertionError with all of it where it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    done = subprocess.run(
        [*command, "-m", module, *arguments], cwd=REPOSITORY, text=True, timeout=timeout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout
