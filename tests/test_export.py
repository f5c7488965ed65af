"""export: two files that restore the teacher bit for bit, and name the run they come from."""

import json
from pathlib import Path

import pytest
import torch

from mofore.errors import UserError
from mofore.export import write_encoder
from mofore.inference import load_encoder
from mofore.models.backbone import Attention, BackboneConfig
from mofore.models.encoder import VideoEncoder
from mofore.run_folder import export_run, load_pretraining

BACKBONE = BackboneConfig(
    embed_dim=32,
    depth=1,
    num_heads=2,
    patch_size=8,
    tubelet_size=1,
    reg_tokens=2,
    attention=Attention.per_frame,
)


def clips(frames: int = 4, size: int = 16) -> torch.Tensor:
    shape = (2, 3, frames, size, size)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.fixture
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(BACKBONE, frames=4, size=16, fps=12.5).eval()


@pytest.fixture
def folder(tmp_path: Path, encoder: VideoEncoder) -> Path:
    write_encoder(encoder, {"run": "mine", "step": 7}, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_loaded_encoder_equals_the_written_one(folder, encoder):
    loaded = load_encoder(folder)
    assert (loaded.frames, loaded.fps, loaded.size, loaded.dim) == (4, 12.5, 16, 32)
    assert loaded.config == BACKBONE
    assert not loaded.training
    assert torch.equal(loaded(clips()), encoder(clips()))
    assert torch.equal(loaded.embed(clips()), encoder(clips()).mean(dim=1))
    assert loaded.embed(clips(8, 32)).shape == (2, 32)  # other lengths and sizes work too
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]
    assert json.loads((folder / "encoder.json").read_text())["source"] == {"run": "mine", "step": 7}


def test_export_run_writes_the_newest_teacher(tmp_path, run_small):
    run = run_small(tmp_path / "run")
    checkpoint = export_run(run, tmp_path / "encoder")
    loaded, (model, config, _) = load_encoder(tmp_path / "encoder"), load_pretraining(run)
    data = config.data
    assert (loaded.frames, loaded.fps, loaded.size) == (data.frames, data.fps, data.size)
    video = clips(data.frames, data.size)
    assert torch.equal(loaded(video), model.teacher(video))
    assert not torch.equal(loaded(video), model.student(video))
    source = json.loads((tmp_path / "encoder" / "encoder.json").read_text())["source"]
    assert (source["step"], source["digest"]) == (4, checkpoint.digest)


def test_loading_does_not_need_the_pretrained_weights_file(tmp_path, encoder):
    encoder.config = BackboneConfig(
        **{**vars(BACKBONE), "pretrained_path": "/gone/vit.safetensors"}
    )
    write_encoder(encoder, {}, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(clips()), encoder(clips()))


def change_config(**changes):
    def change(folder: Path) -> None:
        path = folder / "encoder.json"
        document = json.loads(path.read_text())
        document["backbone"] |= changes.pop("backbone", {})
        path.write_text(json.dumps(document | changes))

    return change


def truncate(name: str):
    def halve(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return halve


def remove(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("encoder.json"), "has no encoder.json: .*mofore export RUN"),
        (remove("encoder.safetensors"), "has no encoder.safetensors"),
        (change_config(format=1), "encoder.json has format 1, .* 2. .*again with `mofore export"),
        (change_config(format=99), "encoder.json has format 99"),
        (
            change_config(backbone={"embed_dim": 64}),
            "encoder.safetensors does not fit encoder.json",
        ),
        (change_config(backbone={"width": 64}), "encoder.json is damaged: .*width.*export RUN"),
        (change_config(backbone={"attention": "none"}), "encoder.json is damaged: .*export RUN"),
        (truncate("encoder.json"), "encoder.json is damaged"),
        (truncate("encoder.safetensors"), "encoder.safetensors does not fit encoder.json"),
    ],
)
def test_damaged_exports_raise(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_encoder(folder)


def test_folder_without_encoder_raises(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere has no encoder.json"):
        load_encoder(tmp_path / "nowhere")


def test_missing_run_raises(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        export_run(tmp_path / "nowhere", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
