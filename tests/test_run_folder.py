"""run_folder: a folder belongs to one running process, and its owner is named."""

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple

import pytest

from mofore.checkpoint import saver
from mofore.errors import UserError
from mofore.run_folder import lock_run
from tests.small import SMALL
from tests.test_training import wait_for_steps


def test_a_folder_in_use_is_refused_with_its_owner(tmp_path):
    with lock_run(tmp_path / "run"):
        facts = json.loads((tmp_path / "run" / "owner.json").read_text())
        assert facts["pid"] == os.getpid()
        with pytest.raises(
            UserError, match=rf"run is in use by process {os.getpid()} on {facts['host']}, since \d"
        ):
            lock_run(tmp_path / "run").__enter__()
    with lock_run(tmp_path / "run"):  # released, so it is free again
        pass
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lock"]


@pytest.mark.slow
def test_a_killed_run_leaves_no_lock_behind(tmp_path, manifest):
    """Another process cannot use the folder while the first lives, and can once it is killed."""
    run, overrides = tmp_path / "run", ["steps=2000", "checkpoint.every=5"]
    fixed = [*SMALL, f"data.manifest={manifest}", f"run_dir={run}", *overrides]
    command = [sys.executable, "-m", "mofore.train", *fixed]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_steps(run, 7, first)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"in use by process {first.pid} on" in second.stderr
        assert "Traceback" not in second.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (run / "owner.json").exists()  # of the dead process; only the lock counts
    with lock_run(run):
        assert json.loads((run / "owner.json").read_text())["pid"] == os.getpid()


def test_missing_disk_space_is_reported_before_training(tmp_path, run_small, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda _: usage(10**6, 10**6, 10**5))
    with pytest.raises(UserError, match=r"a checkpoint takes 1\.\d MB.* 0\.1 MB are free"):
        run_small(tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
