"""open_files: a limit of open files that is too low is raised, or named before anything starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mofore.errors import EXIT_USER_ERROR
from tests.ranks import REPOSITORY
from tests.small import SMALL

CHECK = (
    "import os, resource\n"
    "from mofore.open_files import check_open_files\n"
    "check_open_files({more}, 'this test')\n"
    "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    "files = [os.open(os.devnull, os.O_RDONLY) for _ in range({more})]\n"
)


def run_limited(limit: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command under `ulimit LIMIT`."""
    return subprocess.run(
        ["bash", "-c", f'ulimit {limit}; exec "$@"', "bash", *command],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("limit", "more", "expected"),
    [("-n 100", 50, 100), ("-Sn 40", 50, 4096), ("-Sn 40", 3000, 6006)],
)
def test_a_limit_is_raised_if_needed(limit: str, more: int, expected: int) -> None:
    done = run_limited(limit, [sys.executable, "-c", CHECK.format(more=more)])
    assert done.returncode == 0, done.stderr
    assert abs(int(done.stdout) - expected) < 20


def test_a_limit_that_cannot_be_raised_is_named() -> None:
    done = run_limited("-n 40", [sys.executable, "-c", CHECK.format(more=50)])
    assert "may have 40 open files, but this test needs about 5" in done.stderr
    assert "`ulimit -n 4096`" in done.stderr


def test_pretrain_and_prepare_name_the_limit(tmp_path: Path, manifest: Path) -> None:
    mofore = [sys.executable, "-m", "mofore.launch.cli"]
    own = ["workers=4", f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]
    pretrain = [*mofore, "pretrain", *SMALL, *own]
    videos = manifest.parent.parent / "videos"
    prepare = [*mofore, "prepare", str(videos), "--out", str(tmp_path / "out"), "--workers", "20"]
    for command in (pretrain, prepare):
        done = run_limited("-n 40", command)
        assert done.returncode == EXIT_USER_ERROR, done.stderr
        assert "may have 40 open files" in done.stderr
        assert "`ulimit -n 4096`" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [14, 18, 22])
def test_a_command_that_runs_out_of_files_names_the_limit(
    tmp_path: Path, manifest: Path, limit: int
) -> None:
    """Also one that is too low for the checks themselves."""
    own = ["workers=0", f"data.manifest={manifest}", f"run_dir={tmp_path / 'run'}"]
    done = run_limited(
        f"-n {limit}", [sys.executable, "-m", "mofore.launch.cli", "pretrain", *SMALL, *own]
    )
    assert done.returncode == EXIT_USER_ERROR, done.stderr[-2000:]
    assert f"may have {limit} open files" in done.stderr
