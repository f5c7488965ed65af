"""dataset: a sample depends on (seed, epoch, row) only and needs one decode; short videos."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mofore.data.dataset import (
    DataConfig,
    EvaluationClips,
    PretrainClips,
    Sample,
    collate,
    kept_tokens,
    usable_rows,
)
from mofore.data.manifest import Video, read_manifest, write_manifest
from mofore.data.pyav_reader import PyAVReader
from mofore.data.verify import verify_video
from mofore.data.views import AugmentConfig, apply_jitter
from mofore.data.windows import GapConfig
from mofore.errors import UserError
from mofore.types import Batch
from tests import videos

PLAIN = AugmentConfig(
    crop_min_area=1.0, flip_prob=0.0, colour_jitter=0.0, hue_jitter=0.0, greyscale_prob=0.0
)


def prepared(folder: Path, *paths: Path, splits: tuple[str | None, ...] = ()) -> Path:
    """Path of a manifest of these files."""
    rows = []
    for i, path in enumerate(paths):
        rows.append(verify_video(str(path)).row(split=splits[i] if splits else None))
    write_manifest(folder / "manifest.parquet", rows)
    return folder / "manifest.parquet"


def config(manifest: Path, **changes) -> DataConfig:
    defaults = {"frames": 4, "fps": 8.0, "size": 32, "targets": 3, "gap": GapConfig(max=0.5)}
    return DataConfig(str(manifest), **defaults | changes)


def clips(
    manifest: Path, seed: int = 0, tokens: int = 0, teacher_keep_ratio: float = 1.0, **changes
) -> PretrainClips:
    read = read_manifest(manifest)
    rows = np.arange(len(read))
    return PretrainClips(
        read, config(manifest, **changes), rows, seed, tokens, teacher_keep_ratio=teacher_keep_ratio
    )


def tensors(sample: Sample) -> dict[str, torch.Tensor]:
    """Every tensor of a sample, and its row, by name."""
    parts = sample._asdict() | sample.jitter._asdict()
    return {name: torch.as_tensor(part) for name, part in parts.items() if name != "jitter"}


def test_a_sample_has_the_documented_shapes(manifest):
    batch, jitter = collate([clips(manifest)[0, 5], clips(manifest)[0, 7]])
    assert (batch.context.dtype, batch.context.shape) == (torch.uint8, (2, 3, 4, 32, 32))
    assert (batch.targets.dtype, batch.targets.shape) == (torch.uint8, (2, 3, 3, 4, 32, 32))
    assert (batch.gaps.dtype, batch.gaps.shape) == (torch.float32, (2, 3))
    assert (batch.rows.dtype, batch.rows.tolist()) == (torch.int64, [5, 7])
    assert (jitter.matrix.dtype, jitter.matrix.shape) == (torch.float32, (2, 4, 3, 3))
    assert jitter.luma_weight.shape == jitter.noise_weight.shape == (2, 4)
    assert jitter.noise.shape == (2, 4, 0)
    noisy = clips(manifest, augment=AugmentConfig(static_noise=0.5))
    assert collate([noisy[0, 5], noisy[0, 7]]).jitter.noise.shape == (2, 4, 3 * 341)
    plain = clips(manifest, augment=PLAIN)
    assert collate([plain[0, 5], plain[0, 7]]).jitter.matrix.shape == (2, 4, 0, 3)


def test_training_sees_no_label():
    fields_of_batch = ("context", "targets", "gaps", "rows", "visible", "teacher_visible")
    assert Batch._fields == fields_of_batch
    assert not {"label", "group", "split"} & {field.name for field in fields(Video)}


def test_a_sample_is_a_function_of_seed_epoch_and_row(manifest):
    one, two = clips(manifest), clips(manifest)
    two[0, 3], two[4, 9]  # earlier samples have no effect
    again = two[1, 6]
    for name, tensor in tensors(one[1, 6]).items():
        assert torch.equal(tensor, tensors(again)[name]), name
    for other in (one[2, 6], clips(manifest, seed=1)[1, 6]):
        assert not torch.equal(other.context, again.context)
        assert not torch.equal(other.gaps, again.gaps)
    subset = PretrainClips(one.manifest, one.config, np.array([2, 6]), 0)[1, 1]
    assert torch.equal(
        subset.context, again.context
    )  # the row matters, not its position in a subset


def test_visible_tokens_are_drawn_after_all_else(manifest):
    """Ratios of 1 draw nothing, so they change no other number; the teacher's are drawn last."""
    ratios = [(1.0, 1.0), (0.5, 1.0), (0.5, 0.25), (1.0, 0.25)]
    samples = [
        tensors(
            clips(manifest, tokens=32, token_keep_ratio=student, teacher_keep_ratio=teacher)[0, 3]
        )
        for student, teacher in ratios
    ]
    for sample in samples:
        for name in sample.keys() - {"visible", "teacher_visible"}:
            assert torch.equal(sample[name], samples[0][name]), name
    counts = [(len(each["visible"]), len(each["teacher_visible"])) for each in samples]
    assert counts == [(0, 0), (16, 0), (16, 8), (0, 8)]
    assert torch.equal(samples[1]["visible"], samples[2]["visible"])
    seen = samples[2]["teacher_visible"]
    assert (seen.dtype, seen.unique().tolist()) == (torch.int64, seen.tolist())  # ascending
    assert 0 <= seen.min() <= seen.max() < 32
    assert not set(seen.tolist()) <= set(samples[2]["visible"].tolist())  # drawn independently


@pytest.mark.parametrize(
    ("ratio", "count"), [(1.0, 0), (0.5, 16), (0.26, 8), (0.001, 1), (0.999, 32)]
)
def test_a_ratio_below_1_keeps_at_least_one_token(ratio, count):
    assert kept_tokens(ratio, 32) == count


def test_a_sample_does_not_change_global_random_state(manifest):
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    clips(manifest)[0, 0]
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_context_and_targets_share_one_crop(tmp_path):
    """In a static video context and targets are equal for any crop and flip, without jitter."""
    static = np.repeat(videos.noise(1, 80, 112), 30, axis=0)
    path = videos.write_video(tmp_path / "static.mp4", static, options={"crf": "1"})
    manifest = prepared(tmp_path, path)
    augment = AugmentConfig(crop_min_area=0.3, flip_prob=0.5, colour_jitter=0.0, hue_jitter=0.0)
    views = [clips(manifest, augment=augment)[epoch, 0] for epoch in range(6)]
    for sample in views:
        difference = (sample.targets.float() - sample.context.float()).abs().mean()
        assert difference < 4  # of the codec
    apart = (views[0].context.float() - views[1].context.float()).abs().mean()
    assert apart > 20

    sample = clips(manifest, augment=replace(augment, colour_jitter=0.8, hue_jitter=0.5))[0, 0]
    coloured = apply_jitter(collate([sample]))
    means = torch.cat([coloured.context, coloured.targets[0]]).float().mean(dim=(2, 3, 4))
    assert means.std(dim=0).mean() > 2  # each clip has its own palette


def test_frames_and_gaps_match_the_file(tmp_path):
    """Numbered frames at a variable rate: clips have the right frames, and gaps the true times."""
    times = np.cumsum(np.tile([0.05, 0.15, 0.1], 20))[:50]
    path = videos.write_video(tmp_path / "vfr.mp4", videos.numbered_frames(50), timestamps=times)
    manifest = prepared(tmp_path, path)
    starts = times - times[0]
    for epoch in range(20):
        sample = clips(manifest, augment=PLAIN, fps=5.0)[epoch, 0]
        context = videos.frame_numbers(sample.context.permute(1, 2, 3, 0).numpy())
        for target, gap in zip(sample.targets, sample.gaps.tolist(), strict=True):
            later = videos.frame_numbers(target.permute(1, 2, 3, 0).numpy())
            assert np.diff([*context, *later]).min() >= 0
            assert np.diff(starts[later]) == pytest.approx(np.full(3, 0.2), abs=0.16)
            assert gap == pytest.approx(
                max(starts[later[0]] - starts[context[0]] - 0.8, 0), abs=2e-3
            )


def test_one_sample_is_one_open_and_one_pass(manifest, monkeypatch):
    opened, calls = [], []
    open_file, frames = PyAVReader._open, PyAVReader.frames
    monkeypatch.setattr(PyAVReader, "_open", lambda self: opened.append(1) or open_file(self))
    monkeypatch.setattr(
        PyAVReader, "frames", lambda self, wanted: calls.append(wanted) or frames(self, wanted)
    )
    clips(manifest)[0, 0]
    assert len(opened) == len(calls) == 1
    assert np.diff(calls[0]).min() > 0  # each frame once


@pytest.mark.parametrize(("height", "width"), [(96, 54), (54, 96), (63, 47), (33, 121)])
def test_portrait_and_odd_sizes(tmp_path, height, width):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered_frames(40, height, width))
    manifest = prepared(tmp_path, path)
    assert clips(manifest)[0, 0].context.shape == (3, 4, 32, 32)
    data = config(manifest)
    views, row = EvaluationClips(read_manifest(manifest), data, np.arange(1), 5)[0]
    assert (views.shape, views.dtype, row) == ((5, 3, 4, 32, 32), torch.uint8, 0)
    first = [videos.frame_numbers(view.permute(1, 2, 3, 0).numpy())[0] for view in views]
    assert first == sorted(first)
    assert (first[0], first[-1]) == (0, 28)  # 40 frames at 24 fps, a clip of half a second


def test_short_videos_are_dropped_and_counted(tmp_path):
    paths = [
        videos.write_video(tmp_path / f"{n}.mp4", videos.numbered_frames(n))
        for n in (40, 5, 24, 23, 12)
    ]  # at 24 fps; two clips take one second
    manifest = prepared(tmp_path, *paths)
    rows, short = usable_rows(read_manifest(manifest), config(manifest), clips=2)
    assert (rows.tolist(), short) == ([0, 2], 3)
    rows, short = usable_rows(read_manifest(manifest), config(manifest), clips=1)
    assert (rows.tolist(), short) == ([0, 2, 3, 4], 1)
    with pytest.raises(UserError, match="no video is long enough.*data.frames=40"):
        usable_rows(read_manifest(manifest), config(manifest, frames=40), clips=2)


def test_pretraining_on_one_split(tmp_path):
    paths = [
        videos.write_video(tmp_path / f"{n}.mp4", videos.numbered_frames(40)) for n in range(3)
    ]
    manifest = prepared(tmp_path, *paths, splits=("train", "test", "train"))
    rows, short = usable_rows(read_manifest(manifest), config(manifest, split="train"), clips=2)
    assert (rows.tolist(), short) == ([0, 2], 0)
    with pytest.raises(UserError, match="no video of data.split=valid; its splits: test, train"):
        usable_rows(read_manifest(manifest), config(manifest, split="valid"), clips=2)


def test_a_missing_video_raises_an_error_with_its_name(tmp_path):
    path = videos.write_video(tmp_path / "gone.mp4", videos.numbered_frames(40))
    manifest = prepared(tmp_path, path)
    path.unlink()
    with pytest.raises(
        UserError, match=r"gone.mp4 no longer decodes: no such file.*mofore prepare"
    ):
        clips(manifest)[0, 0]
    with pytest.raises(UserError, match="gone.mp4 no longer decodes"):
        EvaluationClips(read_manifest(manifest), config(manifest), np.arange(1), 2)[0]


@pytest.mark.parametrize("settings", [{"frames": 0}, {"size": 0}, {"targets": 0}, {"fps": 0.0}])
def test_settings_out_of_range_raise(settings):
    with pytest.raises(UserError, match=f"data:.*{next(iter(settings))}="):
        DataConfig("x", **settings)
