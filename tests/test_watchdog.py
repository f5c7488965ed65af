"""watchdog: a run driven into collapse is caught, a healthy one passes."""

import json
import os
import time

import pytest
import torch

from mofore.errors import UserError
from mofore.watchdog import Action, Health, WatchConfig, Watchdog, _margin
from tests.small import differing, state

SICK, WELL = Health(1.1, 0.01, 0.0), Health(9.0, 0.3, 0.1)
LONGER = (
    "steps=100", "global_batch=16", "watch.every=5", "watch.videos=16", "checkpoint.every=20", "optimizer.lr=3e-3",
    "optimizer.weight_decay=0", "data.augment.hue=0.5", "data.augment.grey=0.2", "forecaster.kind=mlp",
)  # fmt: skip
COLLAPSING = ("loss.contrast=0", "teacher.momentum=0", "teacher.final_momentum=0")


def watchdog(**words) -> Watchdog:
    return Watchdog(WatchConfig(every=0, **words), None, 1)


def test_an_alarm_needs_several_looks_in_a_row():
    watch = watchdog(patience=2)
    assert [watch.judge(look) is not None for look in (SICK, WELL, SICK, SICK, SICK, SICK, WELL)] == [
        False, False, False, True, False, True, False,
    ]  # fmt: skip
    assert "effective rank 1.10 (watch.min_rank=2), deviation 0.010 (watch.min_std=0.02)" in (
        watch.judge(SICK) or watch.judge(SICK)
    )


def test_what_is_not_a_number_is_sick():
    assert watchdog(patience=1).judge(Health(float("nan"), 0.5, 0.1)) is not None


def test_the_margin_is_zero_where_all_is_the_same():
    assert float(_margin(torch.ones(5, 2, 8))) == pytest.approx(0.0, abs=1e-6)
    own = torch.eye(5)[:, None].expand(5, 2, 5)  # each video like itself alone
    assert float(_margin(own)) == pytest.approx(1.0)
    mixed = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.cosine_similarity(mixed[:, None, 0], mixed[None, :, 1], dim=-1)
    off = [float(cosine[i, j]) for i in range(4) for j in range(4) if i != j]
    assert float(_margin(mixed)) == pytest.approx(float(cosine.diagonal().mean()) - sum(off) / 12)


def test_actions(tmp_path, capfd):
    told = tmp_path / "told"
    watch = watchdog(command=f'echo "$MOFORE_RUN $MOFORE_STEP $MOFORE_ALARM" > {told}')
    watch.act("it collapses", tmp_path, 7)
    assert capfd.readouterr().err == "mofore: step 7: it collapses\n"
    end = time.monotonic() + 10
    while not (told.exists() and told.read_text().endswith("\n")):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert told.read_text() == f"{tmp_path} 7 it collapses\n"
    with pytest.raises(UserError, match=r"stopped at step 7: it collapses The last checkpoint stands"):
        watchdog(action=Action.stop).act("it collapses", tmp_path, 7)


def held(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "held_rank" in line]


@pytest.mark.slow
def test_a_collapsing_run_is_caught(tmp_path, run_small):
    run = tmp_path / "run"
    with pytest.raises(UserError, match="the encoder is collapsing"):
        run_small(run, *LONGER, *COLLAPSING, "watch.action=stop")
    seen = held(run)
    print([(line["step"], line["held_rank"], line["held_std"], line["held_margin"]) for line in seen])
    assert seen[-1]["held_rank"] < 2 or seen[-1]["held_std"] < 0.02
    assert os.listdir(run / "checkpoints")  # what there is stands


@pytest.mark.slow
def test_a_healthy_run_passes(tmp_path, run_small, capfd):
    run = run_small(tmp_path / "run", *LONGER, "watch.action=stop")
    seen = held(run)
    print([(line["step"], line["held_rank"], line["held_std"], line["held_margin"]) for line in seen])
    assert [line["step"] for line in seen] == list(range(5, 101, 5))
    assert all(line["held_rank"] > 2 for line in seen)
    assert "collapsing" not in capfd.readouterr().err


def test_looking_changes_nothing(tmp_path, run_small):
    seen, unseen = (
        run_small(tmp_path / "seen", "watch.every=1"),
        run_small(tmp_path / "unseen", "watch.every=0"),
    )
    assert differing(state(seen, 4), state(unseen, 4)) == []
