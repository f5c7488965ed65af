"""checkpoint: committed by one rename, pruned, and what does not fit is named before anything is overwritten."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mofore import checkpoint as module
from mofore.checkpoint import Checkpoint, find_checkpoint, save_checkpoint, teacher_weights
from mofore.data.manifest import VIDEO_COLUMNS, Row, read_manifest, write_manifest
from mofore.errors import UserError
from tests.small import differing, metrics, state

META = {"manifest_digest": "0" * 64, "config": {}}


def tensors(value: float = 1.0) -> Iterator:
    for name in ("weights/student.a", "weights/teacher.a", "exp_avg/student.a"):
        yield name, lambda: torch.full((3, 2), value)


def save(run: Path, step: int, keep_last: int = 2) -> Path:
    return save_checkpoint(run, step, tensors(float(step)), META, keep_last)


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_saved_is_read_back(tmp_path):
    saved = Checkpoint(save(tmp_path, 3))
    assert saved.step == 3
    assert set(saved.files) == {"weights/student.a", "weights/teacher.a", "exp_avg/student.a"}
    assert torch.equal(saved.read("weights/student.a"), torch.full((3, 2), 3.0))
    assert teacher_weights(saved).keys() == {"a"}
    again = Checkpoint(save(tmp_path / "again", 3))
    assert again.digest == saved.digest != Checkpoint(save(tmp_path, 4)).digest


def test_the_newest_is_found_by_number(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for step in (9, 10, 100):
        save(tmp_path, step, keep_last=5)
        assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / f"step-{step}"


def test_only_the_newest_are_kept(tmp_path):
    for step in range(8, 13):
        save(tmp_path, step)
    assert folders(tmp_path) == ["step-11", "step-12"]
    save(tmp_path, 13, keep_last=1)
    assert folders(tmp_path) == ["step-13"]


def test_a_copy_under_another_name_is_left_alone(tmp_path):
    shutil.copytree(save(tmp_path, 2), tmp_path / "checkpoints" / "step-2-before-sweep")
    assert find_checkpoint(tmp_path).name == "step-2"
    save(tmp_path, 3, keep_last=1)
    assert folders(tmp_path) == ["step-2-before-sweep", "step-3"]


def test_a_kill_before_the_rename_leaves_the_one_before(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert folders(tmp_path) == [".step-2.writing", "step-1"]
    assert find_checkpoint(tmp_path).name == "step-1"
    save(tmp_path, 2)  # the draft is written over
    assert folders(tmp_path) == ["step-1", "step-2"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_file_is_named(tmp_path, damage):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    damage(folder / "rank-00000.safetensors")
    with pytest.raises(
        UserError, match=r"step-2/rank-00000.safetensors is damaged: remove the folder .*step-2 "
    ):
        Checkpoint(folder)
    shutil.rmtree(folder)  # the remedy
    assert Checkpoint(find_checkpoint(tmp_path)).step == 1


def test_another_format_is_named(tmp_path):
    folder = save(tmp_path, 1)
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="step-1 has checkpoint format 99"):
        Checkpoint(folder)


class Student(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "name", "said"),
    [((4, 2), "student", r"student.a has shape \[3, 2\], this configuration makes it \[4, 2\]"),
     ((3, 2), "forecaster", "holds no weights/forecaster.a")],
)  # fmt: skip
def test_other_shapes_and_other_models_are_named(tmp_path, shape, name, said):
    saved = Checkpoint(save(tmp_path, 1))
    model = nn.ModuleDict({"student": Student(3, 2)})
    saved.load_weights(model)
    assert torch.equal(model["student"].a, torch.ones(3, 2))
    with pytest.raises(UserError, match=said):
        saved.load_weights(nn.ModuleDict({name: Student(*shape)}))


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def refused(run_small, run: Path, said: str, *words: str) -> None:
    """Training into this folder is refused with this message, and nothing in it changes."""
    before = contents(run)
    with pytest.raises(UserError, match=said):
        run_small(run, *words)
    assert contents(run) == before


def test_another_configuration_in_the_run_folder_is_named(tmp_path, run_small):
    run = run_small(tmp_path / "run", "steps=2")
    refused(run_small, run, "optimizer.lr=0.001 there, 0.5 here", "steps=2", "optimizer.lr=0.5")
    refused(run_small, run, "steps=2 there, 4 here")


def test_another_manifest_is_named(tmp_path, run_small, manifest):
    run = run_small(tmp_path / "run", "steps=2", "checkpoint.every=1")
    shutil.rmtree(run / "checkpoints" / "step-2")
    read, other = read_manifest(manifest), tmp_path / "other.parquet"
    one_less = [read[row] for row in range(len(read) - 1)]
    rows = [Row(*(getattr(video, name) for name in VIDEO_COLUMNS), digest="x") for video in one_less]
    write_manifest(other, rows)
    refused(run_small, run, "step-1 was trained on another manifest", "steps=2", f"data.manifest={other}")


def test_a_damaged_checkpoint_stops_a_resume(tmp_path, run_small):
    """And once its folder is removed, as the message says, the run goes on to the same end."""
    run = run_small(tmp_path / "run")
    whole, lines = state(run, 4), metrics(run)
    truncate(run / "checkpoints" / "step-4" / "rank-00000.safetensors")
    refused(run_small, run, "step-4/rank-00000.safetensors is damaged")
    shutil.rmtree(run / "checkpoints" / "step-4")
    run_small(run)
    assert differing(state(run, 4), whole) == []
    assert metrics(run) == lines


def test_how_the_work_is_done_may_change(tmp_path, run_small):
    """Another stage, micro-batch and place: the run goes on, and config.yaml says how."""
    run = run_small(tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-4")
    moved = run.rename(tmp_path / "moved")
    run_small(moved, "engine.zero=2", "micro_batch=2", "checkpoint.keep_last=1")
    assert folders(moved) == ["step-4"]
    assert "zero: 2" in (moved / "config.yaml").read_text()


def test_moments_are_complete(tmp_path, run_small):
    run = run_small(tmp_path / "run", "steps=1")
    saved: dict[str, Tensor] = state(run, 1)
    trained = {name[8:] for name in saved if name.startswith("weights/") and "/teacher." not in name}
    for key in ("exp_avg", "exp_avg_sq"):
        assert {name.removeprefix(f"{key}/") for name in saved if name.startswith(f"{key}/")} == trained
        assert all(saved[f"{key}/{name}"].shape == saved[f"weights/{name}"].shape for name in trained)
