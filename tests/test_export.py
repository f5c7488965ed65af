"""export: two files that give the teacher's embeddings bit for bit, and say where they come from."""

import json
from pathlib import Path

import pytest
import torch

from mofore.errors import UserError
from mofore.export import load_encoder, write_encoder
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
    return VideoEncoder(BACKBONE, frames=4, size=16).eval()


@pytest.fixture
def folder(tmp_path: Path, encoder: VideoEncoder) -> Path:
    write_encoder(encoder, BACKBONE, 4, 12.5, 16, {"run": "mine", "step": 7}, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_comes_back_as_it_was(folder, encoder):
    loaded = load_encoder(folder)
    assert (loaded.frames, loaded.fps, loaded.size, loaded.dim) == (4, 12.5, 16, 32)
    assert not loaded.training
    assert torch.equal(loaded(clips()), encoder(clips()).mean(dim=1))
    assert torch.equal(loaded.encoder(clips()), encoder(clips()))
    assert loaded(clips(8, 32)).shape == (2, 32)  # other lengths and sizes too
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", "encoder.safetensors"]
    assert json.loads((folder / "encoder.json").read_text())["source"] == {"run": "mine", "step": 7}


def test_a_run_exports_its_newest_teacher(tmp_path, run_small):
    run = run_small(tmp_path / "run")
    checkpoint = export_run(run, tmp_path / "encoder")
    loaded, (model, config, _) = load_encoder(tmp_path / "encoder"), load_pretraining(run)
    video = clips(config.data.frames, config.data.size)
    assert torch.equal(loaded(video), model.teacher.embed(video))
    assert not torch.equal(loaded(video), model.student.embed(video))
    source = json.loads((tmp_path / "encoder" / "encoder.json").read_text())["source"]
    assert (source["step"], source["digest"]) == (4, checkpoint.digest)


def test_weights_need_no_file_that_they_started_from(tmp_path, encoder):
    started = BackboneConfig(**{**vars(BACKBONE), "pretrained_path": "/gone/vit.safetensors"})
    write_encoder(encoder, started, 4, 12.5, 16, {}, tmp_path)
    assert torch.equal(load_encoder(tmp_path)(clips()), encoder.embed(clips()))


def other_format(folder: Path) -> None:
    path = folder / "encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


def other_shape(folder: Path) -> None:
    path = folder / "encoder.json"
    about = json.loads(path.read_text())
    about["backbone"]["embed_dim"] = 64
    path.write_text(json.dumps(about))


def cut(name: str):
    def halve(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return halve


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "encoder.json").unlink(),
            "holds no encoder.json: .*mofore export run=RUN",
        ),
        (lambda folder: (folder / "encoder.safetensors").unlink(), "holds no encoder.safetensors"),
        (other_format, "encoder.json has format 99"),
        (other_shape, "encoder.safetensors does not fit encoder.json"),
        (cut("encoder.json"), "encoder.json is damaged"),
        (cut("encoder.safetensors"), "encoder.safetensors does not fit encoder.json"),
    ],
)
def test_what_is_wrong_is_named(folder, damage, said):
    damage(folder)
    with pytest.raises(UserError, match=said):
        load_encoder(folder)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}/nowhere holds no encoder.json"):
        load_encoder(tmp_path / "nowhere")


def test_a_run_that_is_none_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        export_run(tmp_path / "nowhere", tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()
