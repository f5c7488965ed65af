"""checkpoint: sharded, committed by one rename, verified, pruned; misfits are named."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mofore.checkpoint import writer as module
from mofore.checkpoint.format import CheckpointConfig
from mofore.checkpoint.reader import (
    Checkpoint,
    find_latest_checkpoint,
    rename_damaged,
    teacher_weights,
)
from mofore.checkpoint.writer import commit, owned_shards, prune, write_shards
from mofore.data.manifest import VIDEO_COLUMNS, read_manifest, write_manifest
from mofore.errors import UserError
from mofore.types import Shard
from tests import videos
from tests.small import differing, metrics, state

SHAPES = {name: [3, 2] for name in ("weights/student.a", "weights/teacher.a", "exp_avg/student.a")}


def shards(value: float) -> Iterator[Shard]:
    """A state that every rank holds whole; each number in it is another."""
    for i, name in enumerate(SHAPES):
        yield Shard(name, 0, value + torch.arange(6.0) + 100 * i, True)


def save(
    run: Path, step: int, ranks: int = 1, monkeypatch: pytest.MonkeyPatch | None = None
) -> Path:
    """What the ranks do one after the other: write shares, then commit."""
    draft, files = run / "checkpoints" / f".step-{step}.writing", {}
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for rank in range(ranks):
        if monkeypatch:
            monkeypatch.setattr(module, "get_rank", lambda rank=rank: rank)
            monkeypatch.setattr(module, "get_world_size", lambda: ranks)
        own = list(owned_shards(shards(float(step))))
        path = draft / f"rank-{rank:05d}.safetensors"
        files[path.name] = write_shards(
            path, own, torch.cat([torch.empty(0), *(shard.values for shard in own)]), SHAPES
        )
    if monkeypatch:
        monkeypatch.undo()
    final = run / "checkpoints" / f"step-{step}"
    commit(
        draft, final, {"step": step, "shapes": SHAPES, "manifest_digest": "0" * 64, "files": files}
    )
    return final


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_what_is_written_is_read_back(tmp_path):
    saved = Checkpoint(save(tmp_path, 3))
    assert saved.step == 3
    assert torch.equal(saved.tensor("weights/teacher.a"), 103 + torch.arange(6.0).view(3, 2))
    assert teacher_weights(saved).keys() == {"a"}
    again = Checkpoint(save(tmp_path / "again", 3))
    assert again.digest == saved.digest != Checkpoint(save(tmp_path, 4)).digest


def test_one_rank_writes_an_ordinary_safetensors_file(tmp_path):
    tensors = load_file(save(tmp_path, 3) / "rank-00000.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == SHAPES
    assert torch.equal(tensors["weights/student.a"], 3 + torch.arange(6.0).view(3, 2))


# 18 numbers: cut within tensors, and more ranks than numbers
@pytest.mark.parametrize("ranks", [2, 4, 7, 32])
def test_shares_of_any_number_of_ranks_are_the_whole(tmp_path, monkeypatch, ranks):
    saved = Checkpoint(save(tmp_path, 5, ranks, monkeypatch))
    assert len(list(saved.folder.glob("*.safetensors"))) == ranks
    for i, name in enumerate(SHAPES):
        assert torch.equal(saved.read(name), 5 + torch.arange(6.0) + 100 * i)
        for start in range(6):
            for stop in range(start, 7):
                assert torch.equal(
                    saved.read(name, start, stop), 5 + torch.arange(6.0)[start:stop] + 100 * i
                )


def test_shares_are_equal_slices(monkeypatch):
    monkeypatch.setattr(module, "get_world_size", lambda: 4)
    sizes = []
    for rank in range(4):
        monkeypatch.setattr(module, "get_rank", lambda rank=rank: rank)
        sizes.append(sum(len(shard.values) for shard in owned_shards(shards(0.0))))
    assert sum(sizes) == 18
    assert max(sizes) - min(sizes) <= 1
    # what a rank alone holds it writes itself
    own = [Shard("exp_avg/student.a", 2, torch.ones(2), False)]
    assert list(owned_shards(own)) == own


def test_the_newest_is_found_by_number(tmp_path):
    assert find_latest_checkpoint(tmp_path) == (None, [])
    for step in (9, 10, 100):
        save(tmp_path, step)
        newest, faults = find_latest_checkpoint(tmp_path)
        assert (newest.step, faults) == (step, [])


def test_only_the_newest_and_every_nth_are_kept(tmp_path):
    for step in range(8, 13):
        save(tmp_path, step)
        prune(tmp_path, CheckpointConfig(keep_last=2, keep_every=9))
    assert folders(tmp_path) == ["step-11", "step-12", "step-9"]
    prune(tmp_path, CheckpointConfig(keep_last=1), keep=[tmp_path / "checkpoints" / "step-9"])
    assert folders(tmp_path) == ["step-12", "step-9"]


def test_a_copy_under_another_name_is_left_alone(tmp_path):
    shutil.copytree(save(tmp_path, 2), tmp_path / "checkpoints" / "step-2-before-sweep")
    save(tmp_path, 3)
    prune(tmp_path, CheckpointConfig(keep_last=1))
    assert folders(tmp_path) == ["step-2-before-sweep", "step-3"]


def test_a_reader_keeps_what_is_removed_under_it(tmp_path):
    """As far as it has opened the files; what it has not is named."""
    opened, other = Checkpoint(save(tmp_path, 1)), Checkpoint(tmp_path / "checkpoints" / "step-1")
    opened.open_files(["weights/student.a"])
    save(tmp_path, 2)
    prune(tmp_path, CheckpointConfig(keep_last=1))
    assert folders(tmp_path) == ["step-2"]
    assert torch.equal(opened.read("weights/student.a"), 1 + torch.arange(6.0))
    with pytest.raises(UserError, match=r"step-1/rank-00000.safetensors was removed while the"):
        other.read("weights/student.a")


def flip(path: Path) -> None:
    """One bit of the last byte."""
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_step(path: Path) -> None:
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("rank-00000.safetensors", truncate, r"is damaged: \d+ bytes of \d+"),
        ("rank-00000.safetensors", flip, "is damaged: its digest differs"),
        ("rank-00000.safetensors", Path.unlink, "is missing"),
        ("checkpoint.json", Path.unlink, "is missing"),
        ("checkpoint.json", truncate, "is damaged: JSONDecodeError"),
        ("checkpoint.json", other_step, "is damaged: its digest differs"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path, file, damage, message):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    damage(folder / file)
    newest, faults = find_latest_checkpoint(tmp_path)
    assert newest.step == 1
    assert len(faults) == 1
    with pytest.raises(AssertionError, match=rf"step-2/{file} {message}"):
        raise AssertionError(faults[0])
    rename_damaged(tmp_path, newest.step)
    assert folders(tmp_path) == ["step-1", "step-2.damaged"]

    damage(save(tmp_path, 2) / file)  # and another of the same name
    rename_damaged(tmp_path, 1)
    assert folders(tmp_path) == ["step-1", "step-2.damaged", "step-2.damaged-1"]


def test_no_whole_one_is_never_a_fresh_start(tmp_path):
    for step in (1, 2):
        flip(save(tmp_path, step) / "rank-00000.safetensors")
    with pytest.raises(
        UserError, match=r"All checkpoints of .* are damaged: .*step-2/rank.*step-1/rank.*remove"
    ):
        find_latest_checkpoint(tmp_path)


def test_another_format_is_named(tmp_path):
    folder = save(tmp_path, 1)
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="step-1 has checkpoint format 99"):
        find_latest_checkpoint(tmp_path)


class Student(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        ((4, 2), "student", r"student.a has shape \[3, 2\], this configuration makes it \[4, 2\]"),
        ((3, 2), "forecaster", "has no weights/forecaster.a"),
    ],
)
def test_other_shapes_and_other_models_are_named(tmp_path, shape, name, message):
    saved = Checkpoint(save(tmp_path, 1))
    model = nn.ModuleDict({"student": Student(3, 2)})
    saved.load_weights(model)
    assert torch.equal(model["student"].a, 1 + torch.arange(6.0).view(3, 2))
    with pytest.raises(UserError, match=message):
        saved.load_weights(nn.ModuleDict({name: Student(*shape)}))


def contents(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()
    }


def refused(run_small, run: Path, message: str, *overrides: str) -> None:
    """Training into this folder raises this error, and nothing in the folder changes."""
    before = contents(run)
    with pytest.raises(UserError, match=message):
        run_small(run, *overrides)
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
    rows = [
        videos.row(**{name: getattr(video, name) for name in VIDEO_COLUMNS}) for video in one_less
    ]
    write_manifest(other, rows)
    refused(
        run_small,
        run,
        "step-1 was trained on another manifest",
        "steps=2",
        f"data.manifest={other}",
    )


def test_a_damaged_checkpoint_costs_only_its_own_steps(tmp_path, run_small, caplog):
    run = run_small(tmp_path / "run")
    whole, lines = state(run, 4), metrics(run)
    flip(run / "checkpoints" / "step-4" / "rank-00000.safetensors")
    run_small(run)
    assert (
        "step-4/rank-00000.safetensors is damaged: its digest differs. It was renamed; resuming "
        "from step 2" in caplog.text
    )
    assert folders(run) == ["step-2", "step-4", "step-4.damaged"]
    assert differing(state(run, 4), whole) == []
    assert metrics(run) == lines


def test_how_the_work_is_done_may_change(tmp_path, run_small):
    """Another stage, micro-batch and place: the run resumes, and config.yaml has the new values."""
    run = run_small(tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-4")
    moved = run.rename(tmp_path / "moved")
    run_small(moved, "engine.zero_stage=2", "micro_batch=2", "checkpoint.keep_last=1")
    assert folders(moved) == ["step-4"]
    assert "zero_stage: 2" in (moved / "config.yaml").read_text()


def test_moments_are_complete(tmp_path, run_small):
    run = run_small(tmp_path / "run", "steps=1")
    saved: dict[str, Tensor] = state(run, 1)
    trained = {
        name[8:] for name in saved if name.startswith("weights/") and "/teacher." not in name
    }
    for key in ("exp_avg", "exp_avg_sq"):
        assert {
            name.removeprefix(f"{key}/") for name in saved if name.startswith(f"{key}/")
        } == trained
        assert all(
            saved[f"{key}/{name}"].shape == saved[f"weights/{name}"].shape for name in trained
        )
