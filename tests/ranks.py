"""Starts several gloo ranks on this machine, as a user would: torchrun."""

import os
import subprocess
import sys
from pathlib import Path

from mofore.engine import free_port

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


def start_tasks(
    world: int, log: Path, module: str, *arguments: str, **environment: str
) -> list[subprocess.Popen]:
    """The ranks as processes of their own, as SLURM starts tasks: nobody ends one for another's sake."""
    common = {
        "TASKS_OF": str(log),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    tasks = []
    for rank in range(world):
        with (log / f"rank-{rank}.log").open("w") as file:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", module, *arguments]
            tasks.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file,
                                          env=os.environ | common | own | environment, start_new_session=True))  # fmt: skip
    return tasks
