"""collapse_monitor: a run driven into collapse is caught, a healthy one passes."""

import json
import os
import time

import pytest
import torch

from mofore.collapse import effective_rank, embedding_std
from mofore.collapse_monitor import (
    Action,
    CollapseConfig,
    CollapseMonitor,
    CollapseStats,
    _stability_margin,
)
from mofore.errors import UserError
from mofore.models.backbone import BackboneConfig
from mofore.models.objective import ModelConfig, Pretraining, build_pretraining
from mofore.types import Batch, Targets
from tests.small import differing, state

COLLAPSED, HEALTHY = CollapseStats(1.1, 0.01, 0.0), CollapseStats(9.0, 0.3, 0.1)
LONGER = (
    "steps=100",
    "global_batch=16",
    "collapse.every=5",
    "collapse.videos=16",
    "checkpoint.every=20",
    "optimizer.lr=3e-3",
    "optimizer.weight_decay=0",
    "data.augment.hue_jitter=0.5",
    "data.augment.greyscale_prob=0.2",
    "forecaster.kind=mlp",
)
COLLAPSING = ("loss.contrastive_weight=0", "teacher.momentum=0", "teacher.final_momentum=0")


def build_monitor(**settings) -> CollapseMonitor:
    return CollapseMonitor(CollapseConfig(every=0, **settings), None, 1)


def test_an_alarm_needs_several_bad_measurements_in_a_row():
    monitor = build_monitor(patience=2)
    sequence = [COLLAPSED, HEALTHY, *[COLLAPSED] * 4, HEALTHY]
    assert [monitor.check(stats) is not None for stats in sequence] == [
        False,
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    assert (
        "effective rank 1.10 (collapse.min_rank=2), embedding std 0.010 "
        "(collapse.min_std=0.02)" in (monitor.check(COLLAPSED) or monitor.check(COLLAPSED))
    )


def test_nan_counts_as_collapsed():
    assert build_monitor(patience=1).check(CollapseStats(float("nan"), 0.5, 0.1)) is not None


def test_the_margin_is_zero_where_all_is_the_same():
    assert float(_stability_margin(torch.ones(5, 2, 8))) == pytest.approx(0.0, abs=1e-6)
    own = torch.eye(5)[:, None].expand(5, 2, 5)  # each video like itself alone
    assert float(_stability_margin(own)) == pytest.approx(1.0)
    mixed = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(mixed[:, None, 0], mixed[None, :, 1], dim=-1)
    off = [float(cosine[i, j]) for i in range(4) for j in range(4) if i != j]
    assert float(_stability_margin(mixed)) == pytest.approx(
        float(cosine.diagonal().mean()) - sum(off) / 12
    )


def test_actions(tmp_path, caplog):
    output = tmp_path / "output"
    monitor = build_monitor(command=f'echo "$MOFORE_RUN $MOFORE_STEP $MOFORE_ALARM" > {output}')
    monitor.raise_alarm("it collapses", tmp_path, 7)
    assert "Step 7: it collapses" in caplog.text
    end = time.monotonic() + 10
    while not (output.exists() and output.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert output.read_text() == f"{tmp_path} 7 it collapses\n"
    with pytest.raises(
        UserError,
        match=r"Stopped at step 7 \(collapse.action=stop\): it collapses The last checkpoint is "
        r"kept",
    ):
        build_monitor(action=Action.stop).raise_alarm("it collapses", tmp_path, 7)


class TeacherEngine:
    """What the monitor needs of an engine, without DeepSpeed; keeps the batches that it got."""

    def __init__(self, model: Pretraining, device: torch.device) -> None:
        self.model, self.device = model.to(device), device
        self.batches: list[Batch] = []

    def __call__(self, batch: Batch) -> Targets:
        self.batches.append(batch)
        return self.model(batch)


def build_model() -> Pretraining:
    backbone = BackboneConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8)
    return build_pretraining(ModelConfig(frames=4, size=16, backbone=backbone), seed=0)


def random_clips(videos: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    shape = (videos, 2, 3, 4, 16, 16)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)


def test_the_teacher_embeds_all_tokens_of_both_clips():
    """Whatever teacher.token_keep_ratio is, which only the loader's batches know."""
    model, clips = build_model(), random_clips(5)
    engine = TeacherEngine(model, torch.device("cpu"))
    stats = CollapseMonitor(CollapseConfig(), clips, batch_size=2).measure(engine)
    assert [len(batch.rows) for batch in engine.batches] == [2, 2, 1]
    assert all(not batch.teacher_visible.numel() for batch in engine.batches)
    with torch.no_grad():
        latents = model.teacher_latents(clips)
    assert latents.shape[:3] == (5, 2, 8)  # 2 time steps of 2 x 2 tubelets
    embeddings = latents.mean(dim=2)
    assert stats.effective_rank == pytest.approx(float(effective_rank(embeddings.flatten(0, 1))))
    assert stats.embedding_std == pytest.approx(float(embedding_std(embeddings.flatten(0, 1))))
    assert stats.stability_margin == pytest.approx(float(_stability_margin(embeddings)), abs=1e-6)


@pytest.mark.gpu
def test_a_measurement_on_a_gpu_equals_the_cpus(cuda):
    clips = random_clips(5)
    expected = CollapseMonitor(CollapseConfig(), clips, 2).measure(
        TeacherEngine(build_model(), torch.device("cpu"))
    )
    monitor = CollapseMonitor(CollapseConfig(), clips, 2)
    assert monitor.clips is not None
    assert monitor.clips.is_pinned()
    found = monitor.measure(TeacherEngine(build_model(), cuda))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


def measurements(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "monitor_effective_rank" in line]


@pytest.mark.slow
def test_a_collapsing_run_is_caught(tmp_path, run_small):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="The encoder is collapsing"):
        run_small(run, *LONGER, *COLLAPSING, "collapse.action=stop")
    seen = measurements(run)
    print(seen)
    assert seen[-1]["monitor_effective_rank"] < 2 or seen[-1]["monitor_embedding_std"] < 0.02
    assert os.listdir(run / "checkpoints")  # they are kept


@pytest.mark.slow
def test_a_healthy_run_passes(tmp_path, run_small, caplog):
    run = run_small(tmp_path / "run", *LONGER, "collapse.action=stop")
    seen = measurements(run)
    print(seen)
    assert [line["step"] for line in seen] == list(range(5, 101, 5))
    assert all(line["monitor_effective_rank"] > 2 for line in seen)
    assert "collapsing" not in caplog.text


def test_measuring_changes_nothing(tmp_path, run_small):
    seen, unseen = (
        run_small(tmp_path / "seen", "collapse.every=1"),
        run_small(tmp_path / "unseen", "collapse.every=0"),
    )
    assert differing(state(seen, 4), state(unseen, 4)) == []
