"""saver: writes beside the training, commits whole checkpoints, retries, uploads."""

import json
import os
import resource
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from mofore.checkpoint import saver as module
from mofore.checkpoint import upload as upload_module
from mofore.checkpoint.format import CheckpointConfig
from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint
from mofore.checkpoint.saver import Saver, check_disk_space
from mofore.checkpoint.upload import Upload
from mofore.errors import UserError
from mofore.types import Shard
from tests.small import SMALL, differing, state

SHAPES = {"weights/student.a": [1000, 10]}


def shards(tensor: torch.Tensor) -> Iterator[Shard]:
    yield Shard("weights/student.a", 0, tensor.flatten(), True)


@pytest.fixture
def saver(tmp_path) -> Saver:
    return Saver(tmp_path, CheckpointConfig(every=20, keep_last=2), SHAPES)


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_saved_is_the_state_at_that_step(tmp_path, saver, monkeypatch):
    """Even if training continues before the first byte is written."""
    may_write, write = threading.Event(), module.write_shards
    monkeypatch.setattr(module, "write_shards", lambda *rest: may_write.wait() and write(*rest))
    weights = torch.arange(10000.0).view(1000, 10)
    saver.save(1, shards(weights), {})
    assert saver.pending
    assert saver.writing
    weights += 1  # the next step
    assert find_latest_checkpoint(tmp_path) == (None, [])  # nothing is committed yet
    may_write.set()
    assert saver.commit()
    assert not saver.pending
    assert torch.equal(
        Checkpoint(tmp_path / "checkpoints" / "step-1").tensor("weights/student.a"), weights - 1
    )

    saver.save(2, shards(weights), {})
    saver.save(3, shards(weights + 1), {})  # waits for the one before
    saver.close()
    assert folders(tmp_path) == ["step-2", "step-3"]
    assert torch.equal(
        Checkpoint(tmp_path / "checkpoints" / "step-3").tensor("weights/student.a"), weights + 1
    )


def test_what_a_kill_left_is_swept_away(tmp_path, saver):
    saver.save(1, shards(torch.ones(1000, 10)), {})
    saver.close()
    for left in (".step-2.1-a.writing", ".step-0.removing"):
        (tmp_path / "checkpoints" / left).mkdir()
    Saver(tmp_path, CheckpointConfig(), SHAPES)
    assert folders(tmp_path) == ["step-1"]


def test_a_disk_that_fails_is_reported_and_retried(tmp_path, saver, caplog):
    """The real thing: the system refuses to write beyond a size."""
    saver.save(20, shards(torch.ones(1000, 10)), {})
    saver.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        saver.save(40, shards(torch.zeros(1000, 10)), {})
        assert not saver.commit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    output = caplog.text
    assert (
        "The checkpoint of step 40 could not be written: rank 0: OSError: [Errno 27] File too large"
        in output
    )
    assert "the save will be retried" in output
    assert folders(tmp_path) == ["step-20"]  # committed checkpoints stay, nothing else is left
    assert [step for step in range(41, 61) if saver.should_save(step)] == [
        42,
        44,
        46,
        48,
        50,
        52,
        54,
        56,
        58,
        60,
    ]
    with pytest.raises(UserError, match="The checkpoint of step 40 was not written"):
        saver.close()
    saver.save(42, shards(torch.zeros(1000, 10)), {})
    saver.close()
    assert [step for step in range(41, 61) if saver.should_save(step)] == [60]
    assert folders(tmp_path) == ["step-20", "step-42"]


def test_a_disk_that_stays_full_ends_the_run(saver, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_shards", full)
    for step in range(1, module.MAX_FAILURES):
        saver.save(step, shards(torch.ones(1000, 10)), {})
        assert not saver.commit()
    saver.save(module.MAX_FAILURES, shards(torch.ones(1000, 10)), {})
    with pytest.raises(
        UserError, match=r"No space left on device.*Free space.*rerun the same command"
    ):
        saver.commit()


def test_room_is_counted_before_the_training(tmp_path, monkeypatch):
    free = namedtuple("usage", "total used free")
    config = CheckpointConfig(keep_last=2)  # three of 40,000 bytes while one is written
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free(0, 0, 120_000))
    check_disk_space(tmp_path / "not" / "there", config, SHAPES)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free(0, 0, 119_999))
    with pytest.raises(
        UserError,
        match=r"a checkpoint takes 0.0 MB. checkpoint.keep_last=2 and the one being written need "
        r"0.1 MB",
    ):
        check_disk_space(tmp_path, config, SHAPES)
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)  # its room is taken already
    check_disk_space(tmp_path, config, SHAPES)


def test_copies_follow_the_commits(tmp_path):
    saver = Saver(tmp_path / "run", CheckpointConfig(keep_last=1, upload="memory://copies"), SHAPES)
    for step in (1, 2, 3):
        saver.save(step, shards(torch.full((1000, 10), float(step))), {})
    saver.close()
    system = fsspec.filesystem("memory")
    # the newest always; one between may be left out
    assert "/copies/step-3/checkpoint.json" in system.find("/copies")
    system.get("/copies/step-3", str(tmp_path / "back" / "checkpoints" / "step-3"), recursive=True)
    newest, faults = find_latest_checkpoint(tmp_path / "back")
    assert faults == []
    assert torch.equal(newest.tensor("weights/student.a"), torch.full((1000, 10), 3.0))
    assert folders(tmp_path / "run") == ["step-3"]


def test_a_copy_is_tried_again_and_its_failure_harms_nothing(tmp_path, saver, monkeypatch, caplog):
    saver.save(1, shards(torch.ones(1000, 10)), {})
    saver.close()
    tries, put = [], fsspec.implementations.memory.MemoryFileSystem.put_file

    def flaky(self, source, target, **rest):
        tries.append(target)
        if len(tries) < 3:
            raise ConnectionError("cut off")
        return put(self, source, target, **rest)

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "put_file", flaky)
    monkeypatch.setattr(Upload._copy.retry, "sleep", lambda _: None)
    upload = Upload("memory://flaky")
    upload.add(tmp_path / "checkpoints" / "step-1")
    upload.close()
    assert "/flaky/step-1/checkpoint.json" in fsspec.filesystem("memory").find("/flaky")
    assert len(tries) == 4  # two that failed, two files

    monkeypatch.setattr(upload_module, "META_NAME", "nothing.json")
    upload = Upload("memory://lost")
    upload.add(tmp_path / "checkpoints" / "step-1")
    upload.close()
    assert "step-1 was not copied to memory://lost: FileNotFoundError" in caplog.text
    assert folders(tmp_path) == ["step-1"]


def test_a_run_that_cannot_write_its_last_checkpoint_reports_it(tmp_path, manifest, run_small):
    """And resumes from the one before, to the same end."""
    run = tmp_path / "run"
    script = (
        "import resource, signal, sys; from mofore.checkpoint import saver; write = "
        "saver.write_shards\n"
        "def at_most(path, *rest):\n"
        "    if 'step-4' in str(path): resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, -1))\n"
        "    return write(path, *rest)\n"
        "saver.write_shards = at_most; from mofore.train import main; sys.exit(main(sys.argv[1:]))"
    )
    overrides = [*SMALL, f"data.manifest={manifest}", f"run_dir={run}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *overrides], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "The checkpoint of step 4 was not written" in done.stderr
    assert folders(run) == ["step-2"]
    assert json.loads((run / "checkpoints" / "step-2" / "checkpoint.json").read_text())["step"] == 2
    whole = run_small(tmp_path / "whole")
    run_small(run)
    assert differing(state(run, 4), state(whole, 4)) == []
