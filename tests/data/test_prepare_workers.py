"""prepare's worker processes: a killed worker refuses one file, and Ctrl-C stops all of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mofore.data.prepare import prepare
from tests import videos


def test_a_killed_worker_refuses_one_file(short_video, tmp_path):
    root = tmp_path / "videos"
    videos.write_copies(short_video, root, "b.mp4")
    os.mkfifo(root / "a.mp4")

    def kill():
        descriptor = reader_of(root / "a.mp4")
        for worker in multiprocessing.active_children():
            worker.kill()
        time.sleep(0.5)
        os.close(descriptor)

    killer = threading.Thread(target=kill)
    killer.start()
    prepared = prepare(root, tmp_path / "out", workers=1)
    killer.join()
    assert prepared.videos == 1
    assert [reason for _, reason in prepared.refused] == ["worker died (exit code -9)"]


def reader_of(fifo, patience=60):
    """Wait until a process reads the fifo; it blocks until the returned descriptor is closed."""
    for _ in range(patience * 50):
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"no process opened {fifo}")


def test_ctrl_c_leaves_no_half_file_and_no_worker(short_video, tmp_path):
    root = tmp_path / "videos"
    videos.write_copies(short_video, root, "b.mp4")
    os.mkfifo(root / "a.mp4")
    code = (
        # Children of a test runner in the background would inherit that SIGINT is ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from mofore.data.prepare import prepare\n"
        f"prepare({str(root)!r}, {str(tmp_path / 'out')!r}, workers=2)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE
    )
    descriptor = reader_of(root / "a.mp4")
    os.killpg(child.pid, signal.SIGINT)
    assert b"KeyboardInterrupt" in child.communicate(timeout=30)[1]
    os.close(descriptor)
    left = [path.name for path in (tmp_path / "out").glob("*")]
    assert left in ([], ["unfinished.jsonl"])  # whether b.mp4 was done
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a worker is still running")
