"""Commands in a shell: broken pipes, Ctrl-C, completion."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import REPOSITORY


@pytest.mark.parametrize("argv", [["--help"], ["pretrain", "--help"], ["config"], ["jobs", "."]])
@pytest.mark.parametrize("buffered", [True, False])
def test_broken_pipe(argv: list[str], buffered: bool, tmp_path: Path) -> None:
    """`mofore ... | head`: no traceback, whether a write fails or the flush at the end."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("steps: 3\n")
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run(
        [sys.executable, "-m", "mofore.launch.cli", *argv],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"},
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert ran.stderr == b""
    if argv == ["config"]:
        assert ran.returncode == 141  # as of a process that SIGPIPE ended


def test_interrupt(tmp_path: Path) -> None:
    """Ctrl-C while a command waits."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/rank-00000.log").write_text("a line\n")
    code = (
        "import sys, time\nfrom mofore.launch import cli, monitor\n"
        "monitor.active_jobs = lambda runs: True\n"
        f"sys.exit(cli.main(['logs', {str(tmp_path)!r}, '-f']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "a line\n"
    time.sleep(0.2)
    process.send_signal(2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mofore: interrupted."
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mofore co", {"compare", "config"}),
        ("mofore pretrain --conf", {"--config-dir"}),
        ("mofore submit ev", {"evaluate"}),
        ("mofore submit --mul", {"--multirun"}),
        ("mofore report ru", {"runs/"}),
        ("mofore submit evaluate ru", {"runs/"}),
    ],
)
def test_completion(line: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    answer = tmp_path / "answer"
    environment = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "PYTHONPATH": str(REPOSITORY),
    }
    subprocess.run(
        [sys.executable, "-m", "mofore.launch.cli"],
        cwd=tmp_path,
        env=os.environ | environment,
        check=True,
    )
    assert {each.strip() for each in answer.read_text().split("\n")} == expected
