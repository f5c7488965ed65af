"""benchmarks.learning: every recipe trains its encoder, the hard videos drift, the table adds up."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import footage as videos
from benchmarks import learning
from benchmarks.masks import blocks, parted, scattered
from benchmarks.objectives import VJEPA
from benchmarks.recipes import BASELINES, WORDS, build
from benchmarks.scores import VIEWS, measure, right_by_group
from benchmarks.tables import Sample, Spread, behind, joined, scored, spreads, table
from benchmarks.trainer import Trainer, cost, train
from mofore.config import PretrainConfig, compose
from mofore.data.prepare import prepare
from mofore.data.synthetic import MOTIONS, motion_video
from mofore.evaluation.features import Features
from mofore.models.backbone import Attention
from mofore.types import Batch
from tests.videos import noise, write_video


@pytest.fixture(scope="module")
def footage() -> videos.Footage:
    """Three textures under every motion, in memory."""
    pairs = [(motion, texture) for texture in range(3) for motion in MOTIONS]
    frames = [motion_video(motion, texture, 0, 48, 64, 24) for motion, texture in pairs]
    times = [np.arange(48) / 24] * len(pairs)
    labels, groups = (np.array([str(pair[which]) for pair in pairs]) for which in (0, 1))
    return videos.Footage(
        frames, times, [2.0] * len(pairs), labels, groups, np.repeat("train", len(pairs))
    )


@pytest.mark.parametrize("name", [name for name in WORDS if name not in BASELINES])
def test_a_recipe_moves_the_whole_encoder_that_is_measured(
    name: str, footage: videos.Footage
) -> None:
    torch.manual_seed(0)
    config = compose(PretrainConfig, ["experiment=demo", "data.manifest=none", *WORDS[name]])
    batch: Batch = next(videos.batches(footage, np.arange(24), config.data, 8, 0, config.tokens))
    objective = build(name, config, len(MOTIONS))
    before = copy.deepcopy(objective.encoder.state_dict())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0)
    for _ in range(2):  # a head that begins at zero holds back the first gradient
        loss = objective.loss(batch, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after(0.5)
    assert math.isfinite(loss.item())
    trained = dict(objective.encoder.named_parameters())
    same = [
        key for key, value in before.items() if key in trained and torch.equal(value, trained[key])
    ]
    # no time in a frame
    assert same == (["time"] if config.backbone.attention is Attention.per_frame else [])


@pytest.mark.parametrize(("count", "share"), VJEPA.MASKS)
def test_blocks_hide_rectangles_and_never_all(count: int, share: float) -> None:
    torch.manual_seed(0)
    for _ in range(20):
        hides = blocks(64, 4, count, share)
        assert hides.any(dim=1).all()
        assert not hides.all(dim=1).any()
        kept, hidden = parted(hides)
        assert not hides.gather(1, kept).any()
        assert hides.gather(1, hidden).all()
        assert kept.shape[1] == (~hides).sum(dim=1).min()
    (one,) = blocks(1, 8, 1, 0.25).view(1, 8, 8)
    rows, columns = one.any(dim=1), one.any(dim=0)
    assert torch.equal(one, rows[:, None] & columns)  # a rectangle


@pytest.mark.parametrize(("share", "seen"), [(0.25, 4), (0.1, 2), (0.01, 1)])
def test_scattered_places_are_all_places_once_and_not_the_same_for_all(
    share: float, seen: int
) -> None:
    torch.manual_seed(0)
    kept, hidden = scattered(64, 4, share)
    assert kept.shape == (64, seen)
    assert torch.equal(
        torch.cat([kept, hidden], dim=1).sort(dim=1).values, torch.arange(16).expand(64, -1)
    )
    assert len(kept.sort(dim=1).values.unique(dim=0)) > 8


def test_hard_videos_are_drawn_from_their_seed_and_drift() -> None:
    video = videos.hard_video("left", 0, 0, 24, 64, 24)
    assert video.shape == (24, 64, 64, 3)
    assert video.dtype == np.uint8
    again = videos.hard_video("left", 0, 0, 24, 64, 24)
    np.testing.assert_array_equal(video, again)
    first, last = (videos.hard_video("right", 0, 0, 24, 64, 24)[at].astype(int) for at in (0, -1))
    assert np.abs(first - last).mean() > 5
    assert (first != last).any(
        axis=2
    ).mean() > 0.9  # the background moves too: objects cover less of the view


def line(recipe: str, seed: int, value: float, steps: int = 10) -> dict:
    scores = dict.fromkeys(
        ("knn_accuracy", "retrieval_r1", "linear_probe_accuracy", "time_sense", "effective_rank"),
        [value, value - 0.1, value + 0.1],
    )
    return {
        "recipe": recipe,
        "seed": seed,
        "textures": 150,
        "minutes": 1.0,
        "steps": steps,
        "scores": scores,
        "by_group": {},
        "curve": [[30, value / 2], [60, value]],
    }


def alone(sample: Sample, folds: bool = False) -> Spread:
    return spreads({"any": sample}, set(), folds)["any"]


def test_an_interval_has_the_error_of_groups_and_of_seeds() -> None:
    one = scored([line("ours", 0, 0.5)], "knn_accuracy")
    assert joined(one, alone(one), False) == pytest.approx(0.1)
    two = scored([line("ours", 0, 0.4), line("ours", 1, 0.6)], "knn_accuracy")
    t = 12.706  # of one degree of freedom, 97.5%
    assert alone(two) == pytest.approx((0.02, 1))
    assert joined(two, alone(two), False) == pytest.approx(
        math.hypot(0.1, t * math.sqrt(0.02 / 2)), rel=1e-3
    )


def test_recipes_have_one_dispersion_over_seeds_in_common() -> None:
    """The mean of their variances as shares of p (1 - p), known better than any of them; a recipe
    of one seed takes it too. One that is at its end whatever the seed has nothing to vary by, and
    says nothing of how the others do.
    """
    seeds = {
        "wide": [0.4, 0.5, 0.6],
        "narrow": [0.2, 0.2, 0.2],
        "one": [0.5],
        "high": [0.9],
        "end": [1.0, 1.0, 1.0],
    }
    samples = {
        name: scored([line(name, seed, value) for seed, value in enumerate(values)], "knn_accuracy")
        for name, values in seeds.items()
    }
    common = spreads(samples, set(samples), False)
    assert common["wide"] == common["one"] == pytest.approx((0.005, 4))
    assert common["narrow"] == pytest.approx((0.02 * 0.16, 4))
    assert common["high"] == pytest.approx((0.02 * 0.09, 4))
    assert common["end"] == pytest.approx((0.0, 4))
    assert joined(samples["one"], common["one"], False) == pytest.approx(
        math.hypot(0.1, 2.776 * math.sqrt(0.005)), rel=1e-3
    )
    assert spreads(samples, {"narrow", "end"}, False)["wide"] == pytest.approx((0.01, 2))


def test_the_difference_of_two_recipes_is_taken_on_the_same_groups() -> None:
    ours, other = line("ours", 0, 0.75), line("weak", 0, 0.5)
    ours["by_group"] = {"videos": [8, 8, 8, 8], "retrieval_r1": [8, 4, 8, 4]}
    # a quarter less on every one of them
    other["by_group"] = ours["by_group"] | {"retrieval_r1": [6, 2, 6, 2]}
    reaches, values = behind([ours], [other], "retrieval_r1")
    assert (reaches, values) == (pytest.approx([0.0]), pytest.approx([0.25]))
    other["by_group"] = ours["by_group"] | {"retrieval_r1": [8, 0, 8, 0]}
    reaches, values = behind([ours], [other], "retrieval_r1")
    assert values == [0.25]
    assert reaches > 0.1
    assert behind([ours], [other], "knn_accuracy") is None


def test_a_difference_varies_as_both_do() -> None:
    trained, fixed, untrained = Spread(0.02, 12), Spread(0.0, 2), Spread(0.01, 2)
    assert trained.apart(trained) == pytest.approx((0.04, 12))
    assert trained.apart(fixed) == pytest.approx((0.02, 12))
    assert trained.apart(untrained) == pytest.approx((0.03, 0.03**2 / (0.02**2 / 12 + 0.01**2 / 2)))
    assert Spread(0.0, 0).apart(Spread(0.0, 0)) == (0.0, 0)


def test_folds_have_groups_of_their_own() -> None:
    """Equal folds halve the error of one with every four of them; what their spread exceeds it by
    is added.
    """
    equal, error = (np.full(4, 0.1), np.full(4, 0.5)), 0.1 / 1.96
    assert joined(equal, alone(equal, True), True) == pytest.approx(0.05)
    assert joined(equal, alone(equal), False) == pytest.approx(0.1)
    apart = np.full(4, 0.1), np.array([0.2, 0.4, 0.6, 0.8])
    beyond = math.sqrt(np.var(apart[1], ddof=1) - error**2)
    reach = joined(apart, alone(apart, True), True)
    assert reach == pytest.approx(math.hypot(0.05, 3.182 * beyond / 2), rel=1e-3)
    pairs = [
        line(name, fold, 0.5) | {"textures": 0} for name in ("ours", "weak") for fold in (0, 1)
    ]
    for each, sizes in zip(pairs, ([4, 4], [2, 2, 2]) * 2, strict=True):
        right = sizes if each["recipe"] == "ours" else [0] * len(sizes)
        each["by_group"] = {"videos": sizes, "knn_accuracy": right}
    reaches, values = behind(pairs[:2], pairs[2:], "knn_accuracy")
    assert (reaches.tolist(), values.tolist()) == ([0, 0], [1, 1])


def test_videos_have_room_for_every_clip_that_is_drawn(tmp_path: Path) -> None:
    """Of a recipe whose words shorten its clips, and of the reference that it is timed beside."""
    for name, frames in (("short", 8), ("long", 24)):
        write_video(tmp_path / f"videos/class/{name}.mp4", noise(frames), fps=24)
    prepare(tmp_path / "videos", tmp_path / "data")
    whole = compose(
        PretrainConfig, ["experiment=demo", "data.manifest=none"]
    ).data  # 8 frames at 24 a second
    brief, manifest = replace(whole, frames=4), tmp_path / "data/manifest.parquet"
    assert [len(video) for video in videos.load(manifest, brief).frames] == [24, 8]
    assert [len(video) for video in videos.load(manifest, brief, whole).frames] == [24]


def test_right_by_group_adds_up_to_the_scores() -> None:
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 40)
    clips = rng.normal(size=(80, VIEWS, 8)).astype(np.float32) + (labels == "a")[:, None, None]
    groups = np.array([str(row // 4) for row in range(80)])
    splits, names = np.where(np.arange(80) < 48, "train", "test"), np.arange(80).astype(str)
    found = Features(clips, labels, groups, splits, names)
    counts, scores = right_by_group(found), measure(found)
    assert counts["videos"] == [4] * 8
    for metric in ("knn_accuracy", "retrieval_r1", "linear_probe_accuracy"):
        assert sum(counts[metric]) / 32 == pytest.approx(scores[metric][0])


def test_the_table_says_when_ours_catches_up() -> None:
    rows = table(
        [line("ours", 0, 0.8), line("weak", 0, 0.4), line("strong", 0, 0.9)], "ours"
    ).splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2:]] == ["strong", "ours", "weak"]
    assert rows[2].endswith("| never |")
    assert rows[4].endswith("| 0.5 min |")


def loss_of_ours(config: PretrainConfig, footage: videos.Footage, steps: int) -> float:
    """Of a run with seed 0 that is not timed before."""
    torch.manual_seed(0)
    trainer = Trainer(build("ours", config, len(MOTIONS)), config, footage, steps, 0)
    return train(trainer, 1.0, lambda step: 0.0)[0]


def test_timing_a_step_leaves_no_trace(footage: videos.Footage) -> None:
    """The run that is timed first is the run that is not: its trainer is made anew from the seed."""
    config = compose(PretrainConfig, ["experiment=demo", "data.manifest=none", "global_batch=8"])

    before = loss_of_ours(config, footage, 3)
    pair = [
        Trainer(build(name, config, len(MOTIONS)), config, footage, 3, 0)
        for name in ("VideoMAE", "ours")
    ]
    assert cost(*pair) > 0
    assert loss_of_ours(config, footage, 3) == before


def test_a_run_is_made_once_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    results, words = (
        tmp_path / "runs.jsonl",
        ["--textures", "8", "--minutes", "0.02", "--seeds", "1"],
    )
    words += [
        "--recipes",
        "ours",
        "frame differences",
        "--folder",
        str(tmp_path),
        "--results",
        str(results),
    ]
    monkeypatch.setattr("sys.argv", ["benchmarks.learning", *words])
    assert learning.main() == 0
    table, told = capsys.readouterr()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    ours = next(line for line in lines if line["recipe"] == "ours")
    assert ours["steps"] == round(0.02 * learning.STEPS_A_MINUTE / ours["cost"])
    assert [seconds for seconds, _ in ours["curve"]][-1] == pytest.approx(1.2)
    step, found = round(0.5 * ours["steps"]), dict(ours["curve"])[0.6]
    assert (
        f"ours, seed 0, step {step} of {ours['steps']}: kNN {found:.1%} of the validation part"
        in told
    )
    # a fifth of 7 train textures: 2, under 8 motions
    assert sum(ours["by_group"]["validation"]["videos"]) == 16
    manifest = tmp_path / "easy-8/data/manifest.parquet"
    config = compose(PretrainConfig, ["experiment=demo", f"data.manifest={manifest}", "seed=0"])
    untimed = loss_of_ours(config, videos.load(manifest, config.data), ours["steps"])
    assert ours["loss"] == pytest.approx(untimed, rel=1e-4)
    monkeypatch.setattr("sys.argv", ["benchmarks.learning", *words])
    assert learning.main() == 0  # nothing is left to make
    assert capsys.readouterr().out == table
    assert len(results.read_text().splitlines()) == 2
