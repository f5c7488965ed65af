"""benchmarks.learning: every recipe trains the encoder that is evaluated; runs repeat exactly."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import learning, video_cache
from benchmarks.masks import block_masks, mask_indices, random_masks
from benchmarks.objectives import VJEPA, Forecasting
from benchmarks.recipe_run import REFERENCE_STEPS_PER_MINUTE
from benchmarks.recipes import ABLATIONS, FORECAST_QUERY, OVERRIDES, UNTRAINED, build_objective
from benchmarks.scores import VIEWS, all_scores, correct_by_group
from benchmarks.trainer import RecipeTrainer, relative_step_cost, train
from benchmarks.variants import VARIANTS, Variant, VariantConfig
from benchmarks.video_cache import VideoCache
from mofore.config import PretrainConfig, compose
from mofore.data.prepare import prepare
from mofore.data.synthetic import MOTIONS, motion_video
from mofore.evaluation.features import Features
from mofore.models.backbone import Attention
from mofore.types import Batch
from tests.videos import noise, write_video


@pytest.fixture(scope="module")
def cache() -> VideoCache:
    """Three textures under every motion."""
    pairs = [(motion, texture) for texture in range(3) for motion in MOTIONS]
    frames = [motion_video(motion, texture, 0, 48, 64, 24) for motion, texture in pairs]
    times = [np.arange(48) / 24] * len(pairs)
    labels, groups = (np.array([str(pair[part]) for pair in pairs]) for part in (0, 1))
    splits = np.repeat("train", len(pairs))
    return VideoCache(frames, times, [2.0] * len(pairs), labels, groups, splits)


def demo_config(*overrides: str) -> PretrainConfig:
    return compose(PretrainConfig, ["experiment=demo", "data.manifest=none", *overrides])


def first_batch(cache: VideoCache, config: PretrainConfig) -> Batch:
    rows = np.arange(len(cache.labels))
    return next(video_cache.sample_batches(cache, rows, config.data, 8, 0, config.tokens))


@pytest.mark.parametrize("name", [name for name in OVERRIDES if name not in UNTRAINED])
def test_a_recipe_trains_every_parameter_of_its_encoder(name: str, cache: VideoCache) -> None:
    torch.manual_seed(0)
    config = demo_config(*OVERRIDES[name])
    batch = first_batch(cache, config)
    objective = build_objective(name, config, len(MOTIONS))
    before = copy.deepcopy(objective.encoder.state_dict())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(2):  # behind a head that starts at zero, the first gradient is zero
        loss = objective.loss(batch, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.update_ema(0.5)
    assert math.isfinite(loss.item())
    after = dict(objective.encoder.named_parameters())
    same = [key for key in after if torch.equal(before[key], after[key])]
    per_frame = config.backbone.attention is Attention.per_frame
    assert same == (["temporal_positions"] if per_frame else [])


def test_the_default_variant_is_the_library_objective(cache: VideoCache) -> None:
    """So a variant differs from MoFore in its one setting alone."""
    config = demo_config()
    torch.manual_seed(0)
    library = Forecasting(config)
    torch.manual_seed(0)
    variant = Variant(demo_config(*FORECAST_QUERY), VariantConfig())
    batch, labels = first_batch(cache, config), torch.arange(8)
    losses = [objective.loss(batch, labels) for objective in (library, variant)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    gradients = [
        torch.cat([p.grad.flatten() for p in objective.model.student.parameters()])
        for objective in (library, variant)
    ]
    torch.testing.assert_close(*gradients)


def test_every_variant_is_an_ablation_with_one_change() -> None:
    default = VariantConfig()
    for name, variant in VARIANTS.items():
        assert name in ABLATIONS
        changed = [key for key in vars(default) if getattr(variant, key) != getattr(default, key)]
        assert len(changed) == 1, name


@pytest.mark.parametrize(("count", "area"), VJEPA.MASKS)
def test_blocks_mask_rectangles_and_never_all(count: int, area: float) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        masked = block_masks(64, 4, count, area)
        assert masked.any(dim=1).all()
        assert not masked.all(dim=1).any()
        visible, hidden = mask_indices(masked)
        assert not masked.gather(1, visible).any()
        assert masked.gather(1, hidden).all()
        assert visible.shape[1] == (~masked).sum(dim=1).min()
    (one,) = block_masks(1, 8, 1, 0.25).view(1, 8, 8)
    rows, columns = one.any(dim=1), one.any(dim=0)
    assert torch.equal(one, rows[:, None] & columns)  # a rectangle


@pytest.mark.parametrize(("ratio", "count"), [(0.25, 4), (0.1, 2), (0.01, 1)])
def test_random_masks_have_every_patch_once_and_differ_by_clip(ratio: float, count: int) -> None:
    torch.manual_seed(0)
    visible, masked = random_masks(64, 4, ratio)
    assert visible.shape == (64, count)
    patches = torch.cat([visible, masked], dim=1).sort(dim=1).values
    assert torch.equal(patches, torch.arange(16).expand(64, -1))
    assert len(visible.sort(dim=1).values.unique(dim=0)) > 8


def test_hard_videos_depend_on_their_seed_and_drift() -> None:
    video = video_cache.hard_video("left", 0, 0, 24, 64, 24)
    assert video.shape == (24, 64, 64, 3)
    assert video.dtype == np.uint8
    again = video_cache.hard_video("left", 0, 0, 24, 64, 24)
    np.testing.assert_array_equal(video, again)
    right = video_cache.hard_video("right", 0, 0, 24, 64, 24).astype(int)
    first, last = right[0], right[-1]
    assert np.abs(first - last).mean() > 5
    # The background moves too: the objects cover less of the view.
    assert (first != last).any(axis=2).mean() > 0.9


def test_videos_have_room_for_the_clips_of_recipe_and_reference(tmp_path: Path) -> None:
    for name, frames in (("short", 8), ("long", 24)):
        write_video(tmp_path / f"videos/class/{name}.mp4", noise(frames), fps=24)
    prepare(tmp_path / "videos", tmp_path / "data")
    reference = demo_config().data  # 8 frames at 24 fps
    shorter, manifest = replace(reference, frames=4), tmp_path / "data/manifest.parquet"
    loaded = video_cache.load_videos(manifest, shorter)
    assert [len(video) for video in loaded.frames] == [24, 8]
    loaded = video_cache.load_videos(manifest, shorter, reference)
    assert [len(video) for video in loaded.frames] == [24]


def test_correct_by_group_adds_up_to_the_scores() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 40)
    views = rng.normal(size=(80, VIEWS, 8)).astype(np.float32) + (labels == "a")[:, None, None]
    groups, names = np.array([str(row // 4) for row in range(80)]), np.arange(80).astype(str)
    splits = np.where(np.arange(80) < 48, "train", "test")
    features = Features(views, labels, groups, splits, names)
    counts, scores = correct_by_group(features), all_scores(features)
    assert counts["videos"] == [4] * 8
    for metric in ("knn_accuracy", "retrieval_r1", "linear_probe_accuracy"):
        assert sum(counts[metric]) / 32 == pytest.approx(scores[metric][0])


def untimed_loss(config: PretrainConfig, cache: VideoCache, steps: int) -> float:
    """Of a MoFore run with seed 0 whose step cost is not measured before."""
    torch.manual_seed(0)
    objective = build_objective("MoFore", config, len(MOTIONS))
    trainer = RecipeTrainer(objective, config, cache, steps, 0)
    return train(trainer, 1.0, lambda step: 0.0)[0]


def test_timing_a_step_leaves_no_trace(cache: VideoCache) -> None:
    """A run builds its trainer anew from the seed after its step cost was measured."""
    config = demo_config("global_batch=8")
    before = untimed_loss(config, cache, 3)
    pair = [
        RecipeTrainer(build_objective(name, config, len(MOTIONS)), config, cache, 3, 0)
        for name in ("VideoMAE", "MoFore")
    ]
    assert relative_step_cost(*pair) > 0
    assert untimed_loss(config, cache, 3) == before


def test_a_run_is_made_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results = tmp_path / "runs.jsonl"
    argv = ["--textures", "8", "--minutes", "0.02", "--seeds", "1", "--videos", str(tmp_path)]
    argv += ["--results", str(results), "--recipes", "MoFore", "frame differences"]
    monkeypatch.setattr("sys.argv", ["benchmarks.learning", *argv])
    assert learning.main() == 0
    table, messages = capsys.readouterr()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    run = next(line for line in lines if line["recipe"] == "MoFore")
    steps = run["steps"]
    assert steps == round(0.02 * REFERENCE_STEPS_PER_MINUTE / run["relative_step_cost"])
    assert [seconds for seconds, _ in run["curve"]][-1] == pytest.approx(1.2)
    step, accuracy = round(0.5 * steps), dict(run["curve"])[0.6]
    message = f"MoFore, seed 0, step {step} of {steps}: kNN {accuracy:.1%} on the validation split"
    assert message in messages
    # A fifth of 7 train textures: 2, under 8 motions.
    assert sum(run["correct_by_group"]["validation"]["videos"]) == 16
    manifest = tmp_path / "easy-8/data/manifest.parquet"
    config = compose(PretrainConfig, ["experiment=demo", f"data.manifest={manifest}", "seed=0"])
    videos = video_cache.load_videos(manifest, config.data)
    assert run["loss"] == pytest.approx(untimed_loss(config, videos, steps), rel=1e-4)
    monkeypatch.setattr("sys.argv", ["benchmarks.learning", *argv])
    assert learning.main() == 0  # no run is missing
    assert capsys.readouterr().out == table
    assert len(results.read_text().splitlines()) == 2
