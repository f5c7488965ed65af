"""Starts gloo ranks on this machine: with torchrun, forked (fast), or as SLURM tasks."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path

from mofore.parallel.engine import find_free_port
from mofore.parallel.signals import children_ignore_stop_signals

REPOSITORY = Path(__file__).parent.parent


def torchrun(world: int, module: str, *arguments: str, timeout: float = 300) -> str:
    """Run `module` on `world` ranks and return its output; AssertionError if it fails."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={world}",
    ]
    done = subprocess.run(
        [*command, "-m", module, *arguments],
        cwd=REPOSITORY,
        text=True,
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def warm_up() -> None:
    """Start the process that ranks are forked from: imports take longer than the training."""
    multiprocessing.set_forkserver_preload(["mofore.train"])
    with children_ignore_stop_signals():
        forkserver.ensure_running()


def run_ranks(world: int, module: str, *arguments: str, timeout: float = 300) -> str:
    """As `torchrun`, without the time that every rank's imports take."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log", find_free_port()
        ranks = [
            context.Process(target=_rank, args=(rank, world, port, log, module, arguments))
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        end = time.monotonic() + timeout
        waiting = list(ranks)
        while waiting and not any(rank.exitcode for rank in ranks) and time.monotonic() < end:
            wait([rank.sentinel for rank in waiting], timeout=end - time.monotonic())
            waiting = [rank for rank in waiting if rank.exitcode is None]
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
            rank.join()
        output = log.read_text()
    assert codes == [0] * world, f"exit codes {codes}: {output}"
    return output


def _rank(
    number: int, world: int, port: int, log: Path, module: str, arguments: tuple[str, ...]
) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__")


def start_tasks(
    world: int, log: Path, module: str, *arguments: str, **environment: str
) -> list[subprocess.Popen]:
    """Start the ranks as separate processes, as SLURM does: none is ended because of another."""
    common = {
        "TASKS_OF": str(log),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(find_free_port()),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    tasks = []
    for rank in range(world):
        with (log / f"rank-{rank}.log").open("w") as file:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", module, *arguments]
            tasks.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    stdout=file,
                    stderr=file,
                    env=os.environ | common | own | environment,
                    start_new_session=True,
                )
            )
    return tasks
