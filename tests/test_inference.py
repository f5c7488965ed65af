"""inference: `mofore.embed` equals evaluation and names bad files; the public API and its types."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mofore
from mofore import inference
from mofore.data.dataset import DataConfig, EvaluationClips
from mofore.data.decode import open_video
from mofore.data.manifest import Video, read_manifest
from mofore.errors import UserError
from mofore.evaluation.encoders import embed_all
from mofore.models.backbone import BackboneConfig
from mofore.models.encoder import VideoEncoder
from tests.videos import garbage, numbered_frames, write_video

BACKBONE = BackboneConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8)
FRAMES, SIZE, FPS = 8, 32, 12.0
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(BACKBONE, FRAMES, SIZE, FPS).eval()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", numbered_frames(40))


@pytest.mark.parametrize("views", [1, 4])
def test_embed_equals_evaluation(encoder, manifest, views):
    """Bit for bit, for videos from a manifest and in batches of the same size."""
    videos = read_manifest(str(manifest))
    rows = np.arange(0, len(videos), 7)
    data = DataConfig(manifest=str(manifest), frames=FRAMES, size=SIZE, fps=FPS)
    batches = DataLoader(EvaluationClips(videos, data, rows, views), batch_size=4)
    _, expected = embed_all({"teacher": encoder.embed}, batches, torch.device("cpu"))
    paths = [videos[int(row)].uri for row in rows]
    found = mofore.embed(encoder, paths, views=views, batch_size=4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected["teacher"].mean(axis=1))


def test_embed_does_not_depend_on_order_or_batch_size(encoder, manifest):
    videos = read_manifest(str(manifest))
    paths = [videos[row].uri for row in range(5)]
    expected = mofore.embed(encoder, paths, batch_size=5)
    assert len(np.unique(expected.round(4), axis=0)) == 5
    for batch_size in (1, 2, 8):
        found = mofore.embed(encoder, paths[::-1], batch_size=batch_size)
        np.testing.assert_allclose(found[::-1], expected, atol=1e-5)


def test_embed_accepts_one_path_or_a_list(encoder, video):
    expected = mofore.embed(encoder, [video])
    assert expected.shape == (1, encoder.dim)
    for paths in (video, str(video), [str(video)], (video,)):
        np.testing.assert_array_equal(mofore.embed(encoder, paths), expected)
    assert mofore.embed(encoder, []).shape == (0, encoder.dim)


def test_each_file_is_opened_once(encoder, video, monkeypatch):
    opened: list[str] = []

    def count(known: Video):
        opened.append(known.uri)
        return open_video(known)

    monkeypatch.setattr("mofore.inference.open_video", count)
    mofore.embed(encoder, [video, video], views=3)
    assert opened == [str(video)] * 2


def test_embed_needs_no_gradients_and_keeps_the_mode(encoder, video):
    encoder.train()
    try:
        mofore.embed(encoder, video)
        assert encoder.training
        assert all(p.grad is None for p in encoder.parameters())
    finally:
        encoder.eval()


def test_embed_runs_under_the_callers_autocast(encoder, video):
    expected = mofore.embed(encoder, video)
    with torch.autocast("cpu", torch.bfloat16):
        found = mofore.embed(encoder, video)
        # It leaves nothing in autocast's cache that a backward in the same context would meet.
        clips = torch.zeros(1, 3, FRAMES, SIZE, SIZE, dtype=torch.uint8)
        encoder.embed(clips).sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    encoder.zero_grad()
    assert_close_in_bf16(found, expected)
    assert np.abs(found - expected).max() > 1e-4  # it was bf16


@pytest.mark.gpu
def test_embed_on_a_gpu_equals_the_cpu(encoder, manifest, cuda):
    videos = read_manifest(str(manifest))
    paths = [videos[row].uri for row in range(5)]
    expected = mofore.embed(encoder, paths, batch_size=2)
    on_gpu = copy.deepcopy(encoder).to(cuda)
    np.testing.assert_allclose(mofore.embed(on_gpu, paths, batch_size=2), expected, atol=1e-4)
    with torch.autocast("cuda", torch.bfloat16):
        assert_close_in_bf16(mofore.embed(on_gpu, paths, batch_size=2), expected)


def assert_close_in_bf16(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.float32
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((found * expected).sum(axis=1) / lengths).min() > 0.9999


def test_a_gpus_results_are_read_one_batch_late_and_all_arrive():
    """The tensors are of the CPU: only the order is tested."""
    started: list[int] = []

    def compute(batches: int) -> Iterator[list[torch.Tensor]]:
        for number in range(batches):
            started.append(number)
            yield [torch.tensor([number]), torch.tensor([-number])]

    seen = []
    for one, other in inference.on_host(compute(3), torch.device("cuda")):
        seen.append((len(started), int(one[0]), int(other[0])))
    assert seen == [(2, 0, 0), (3, 1, -1), (3, 2, -2)]
    started.clear()
    on_cpu = inference.on_host(compute(2), torch.device("cpu"))
    assert [(len(started), int(one[0])) for one, _ in on_cpu] == [(1, 0), (2, 1)]
    assert list(inference.on_host(compute(0), torch.device("cuda"))) == []


def test_bad_files_are_named(encoder, video, tmp_path):
    damaged, missing = garbage(tmp_path / "damaged.mp4"), tmp_path / "missing.mp4"
    with pytest.raises(UserError, match=r"damaged\.mp4: not a video or damaged"):
        mofore.embed(encoder, [video, damaged])
    with pytest.raises(UserError, match=r"missing\.mp4: no such file"):
        mofore.embed(encoder, missing)


@pytest.mark.parametrize("frames", [2, 15])
def test_videos_shorter_than_a_clip_are_named(encoder, tmp_path, frames):
    """A clip takes 8 / 12 s, 16 frames of 24 fps."""
    short = write_video(tmp_path / "short.mp4", numbered_frames(frames), fps=24)
    with pytest.raises(UserError, match=r"short\.mp4 has 0\.\d\d s, .* 0\.67 s"):
        mofore.embed(encoder, short)
    enough = write_video(tmp_path / "enough.mp4", numbered_frames(16), fps=24)
    assert mofore.embed(encoder, enough).shape == (1, encoder.dim)


@pytest.mark.parametrize("settings", [{"views": 0}, {"batch_size": 0}])
def test_invalid_settings_raise(encoder, video, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}=0"):
        mofore.embed(encoder, video, **settings)


def test_embed_needs_fps(video):
    encoder = VideoEncoder(BACKBONE, FRAMES, SIZE).eval()
    with pytest.raises(UserError, match=r"encoder\.fps"):
        mofore.embed(encoder, video)


def test_embed_equals_evaluation_of_the_exported_run(run_small, tmp_path, manifest):
    from mofore.run_folder import export_run, load_teacher

    run = run_small(tmp_path / "run")
    export_run(run, tmp_path / "encoder")
    teacher, _, _ = load_teacher(run)
    uri = read_manifest(str(manifest))[0].uri
    found = mofore.embed(mofore.load_encoder(tmp_path / "encoder"), uri)
    np.testing.assert_array_equal(found, mofore.embed(teacher, uri))


def test_public_api():
    """Public names resolve lazily, `dir` lists them, and others raise AttributeError."""
    public = {"UserError", "VideoEncoder", "__version__", "embed", "load_encoder"}
    assert set(mofore.__all__) == public
    assert public <= set(dir(mofore))
    assert mofore.UserError is UserError
    assert mofore.VideoEncoder is VideoEncoder
    assert mofore.embed is inference.embed
    assert mofore.load_encoder is inference.load_encoder
    with pytest.raises(AttributeError, match="no attribute 'encode'"):
        mofore.encode  # noqa: B018


@pytest.mark.slow
def test_type_checkers_see_the_public_api(tmp_path):
    expected = {
        "load_encoder": r"def \(folder: .*\) -> mofore\.models\.encoder\.VideoEncoder",
        "embed": r"def \(encoder: mofore\.models\.encoder\.VideoEncoder, paths: .*numpy\.floating",
        "VideoEncoder": r"def \(config: .*\) -> mofore\.models\.encoder\.VideoEncoder",
        "UserError": r"mofore\.errors\.UserError",
        "__version__": r"str",
    }
    code = ["import mofore", *(f"reveal_type(mofore.{name})" for name in expected)]
    (tmp_path / "use.py").write_text("\n".join(code))
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, str(tmp_path / "use.py")], capture_output=True, text=True, cwd=REPOSITORY
    )
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    for line, pattern in zip(revealed, expected.values(), strict=True):
        assert re.search(f'Revealed type is ".*{pattern}', line), line
    assert (REPOSITORY / "mofore/py.typed").exists()
