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


def clips(frames: int = 4, size: int = 16, count: int = 2) -> torch.Tensor:
    shape = (count, 3, frames, size, size)
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda u8: u8.float() / 255, r"dtype torch.float32: .*\(255 \* clips\).round\(\)"),
        (lambda u8: u8.float(), r"dtype torch.float32: .*clips.to\(torch.uint8\)"),
        (lambda u8: u8.long(), r"dtype torch.int64: .*clips.to\(torch.uint8\)"),
        (lambda u8: u8 > 127, "dtype torch.bool"),
        (lambda u8: u8[:, :1], r"\[2, 1, 4, 16, 16\]: .*clips.expand\(-1, 3, -1, -1, -1\)"),
        (lambda u8: u8[:, [0, 1, 2, 0]], r"\[2, 4, 4, 16, 16\]: .*clips\[:, :3\]"),
        (lambda u8: u8[:, :2], r"\[2, 2, 4, 16, 16\]: bring three channels"),
        (lambda u8: u8.movedim(1, -1), r"\[2, 4, 16, 16, 3\]: .*clips.movedim\(-1, 1\)"),
        (lambda u8: u8.transpose(1, 2), r"\[2, 4, 3, 16, 16\]: .*clips.transpose\(1, 2\)"),
        (lambda u8: u8[0], r"4 dimensions \[3, 4, 16, 16\]: .*clips.unsqueeze\(0\)"),
        (lambda u8: u8.numpy(), r"type ndarray: .*torch.from_numpy"),
    ],
)
def test_clips_of_another_kind_raise(folder, wrong, message):
    loaded = load_encoder(folder)
    for call in (loaded, loaded.embed):
        with pytest.raises(UserError, match=r"uint8 tensor \[B, 3, T, H, W\].*" + message):
            call(wrong(clips()))


@pytest.mark.parametrize(
    ("convert", "undo"),
    [
        (lambda u8: u8.float() / 255, lambda x: (255 * x).round().to(torch.uint8)),
        (lambda u8: u8.float(), lambda x: x.to(torch.uint8)),
        (lambda u8: u8.movedim(1, -1), lambda x: x.movedim(-1, 1)),
        (lambda u8: u8.transpose(1, 2), lambda x: x.transpose(1, 2)),
    ],
)
def test_the_remedies_give_the_same_tokens(folder, convert, undo):
    loaded = load_encoder(folder)
    assert torch.equal(loaded(undo(convert(clips()))), loaded(clips()))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("attention", list(Attention))
def test_torch_export_keeps_the_batch_free(tmp_path, attention, strict):
    backbone = BackboneConfig(**{**vars(BACKBONE), "attention": attention})
    encoder = VideoEncoder(backbone, frames=4, size=16).eval()
    write_encoder(encoder, {}, tmp_path)
    loaded = load_encoder(tmp_path)
    batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(loaded, (clips(),), dynamic_shapes=batch, strict=strict)
    torch.export.save(program, tmp_path / "encoder.pt2")
    exported = torch.export.load(tmp_path / "encoder.pt2").module()
    for count in (1, 2, 5):
        torch.testing.assert_close(exported(clips(count=count)), loaded(clips(count=count)))
