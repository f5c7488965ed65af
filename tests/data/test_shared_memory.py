"""shared_memory: a /dev/shm that is too small is an error before anything starts, on a real one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mofore.data.shared_memory import batches_in_flight, check_shared_memory
from mofore.errors import EXIT_USER_ERROR, UserError
from tests.ranks import REPOSITORY
from tests.small import SMALL

MIB = 2**20


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"untested here, no tmpfs can be mounted: {done.stderr.strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_batches_that_fit_are_accepted(small_tmpfs: Path) -> None:
    check_shared_memory(MIB // 4, batches=4, ranks=1, smaller="micro_batch", folder=small_tmpfs)
    check_shared_memory(MIB // 4, batches=2, ranks=2, smaller="micro_batch", folder=small_tmpfs)


@pytest.mark.parametrize(("batches", "ranks"), [(5, 1), (3, 2)])
def test_batches_that_do_not_fit_are_named(small_tmpfs: Path, batches: int, ranks: int) -> None:
    with pytest.raises(UserError) as fault:
        check_shared_memory(MIB // 4, batches, ranks, "micro_batch", small_tmpfs)
    for word in (
        f"{small_tmpfs} has 1.0 MiB free",
        f"need {batches * ranks / 4:.1f} MiB",
        f"{batches} batches of 0.2 MiB on {ranks} rank(s)",
        *("--shm-size=2g", "--ipc=host", "smaller micro_batch", "workers=0"),
    ):
        assert word in str(fault.value)


def test_what_others_use_is_not_free(small_tmpfs: Path) -> None:
    (small_tmpfs / "other").write_bytes(bytes(MIB // 2))
    check_shared_memory(MIB // 4, 2, 1, "micro_batch", small_tmpfs)
    with pytest.raises(UserError, match="0.5 MiB free"):
        check_shared_memory(MIB // 4, 3, 1, "micro_batch", small_tmpfs)


def test_a_system_without_the_folder_is_not_checked(tmp_path: Path) -> None:
    check_shared_memory(10**15, 10, 10, "micro_batch", tmp_path / "none")


def test_a_rank_holds_the_prefetched_batches_and_its_own() -> None:
    assert batches_in_flight(workers=3, prefetch_factor=2) == 7


@pytest.mark.parametrize(("size", "code"), [("256k", EXIT_USER_ERROR), ("4m", 0)])
def test_training_does_not_stall(tmp_path: Path, manifest: Path, size: str, code: int) -> None:
    """In a mount namespace with a small /dev/shm. Exit code 2 is not requeued."""
    run = tmp_path / "run"
    own = ["workers=1", f"data.manifest={manifest}", f"run_dir={run}", "engine.timeout=60"]
    train = [sys.executable, "-m", "mofore.train", *SMALL, *own]
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 99; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *train],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"untested here, no namespace with its own /dev/shm: {done.stderr.strip()}")
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert ("/dev/shm has 0.2 MiB free" in output) is (code != 0), output
    assert run.exists() is (code == 0)
