"""train: resumed equals uninterrupted, and DeepSpeed in one process equals plain PyTorch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mofore.config import PretrainConfig, compose
from mofore.data.dataset import PretrainClips, collate
from mofore.data.manifest import read_manifest
from mofore.data.order import global_batch_indices
from mofore.data.views import apply_jitter
from mofore.models.objective import build_pretraining
from mofore.schedules import learning_rate, teacher_momentum
from tests.small import SMALL, differing, distance, metrics, state

LOGGED = {
    "step",
    "loss",
    "forecast_loss",
    "contrastive_loss",
    "contrastive_accuracy",
    "lr",
    "teacher_momentum",
    "grad_norm",
    "samples_per_second",
    "data_wait_fraction",
    "effective_rank",
    "embedding_std",
    "mean_gap",
    "skipped_updates",
    "tflops_per_second",
    "peak_memory_gib",
}


def resume_from_half(run: Path, copy: Path) -> Path:
    """A copy of a run as a kill after step 3 would have left it: the checkpoint of step 2, more
    lines than that.
    """
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-4")
    path = copy / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])
    return copy


@pytest.mark.parametrize("zero", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_run(tmp_path, run_small, zero):
    """Bit for bit: student, forecaster, teacher, both moments, and every metric but times.

    Not stage 3, which test_ranks runs in separate processes: DeepSpeed then replaces torch's
    linear function for good, and what this process computes later differs in its last digits.
    """
    overrides = [f"engine.zero_stage={zero}", "micro_batch=2", "backbone.drop_path=0.3"]
    whole = run_small(tmp_path / "whole", *overrides)
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["step-2", "step-4"]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line.keys() == LOGGED for line in lines)
    assert list((whole / "tensorboard").iterdir())

    resumed = resume_from_half(whole, tmp_path / "resumed")
    run_small(resumed, *overrides)
    assert differing(state(resumed, 4), state(whole, 4)) == []
    assert metrics(resumed) == metrics(whole)

    before = metrics(whole)
    run_small(whole, *overrides)  # a finished run has nothing to do
    assert metrics(whole) == before


def test_every_parameter_moves(tmp_path, run_small):
    run = run_small(tmp_path / "run")
    start, end = state(run, 2), state(run, 4)
    still = [name for name in start if torch.equal(start[name], end[name])]
    assert still == []
    assert any(name.startswith("weights/teacher.") for name in start)


def test_micro_batches_change_nothing(tmp_path, run_small):
    whole, cut = run_small(tmp_path / "whole"), run_small(tmp_path / "cut", "micro_batch=1")
    assert_same_run(cut, whole)


def assert_same_run(run: Path, reference: Path, step: int = 4) -> None:
    """Equal to fp32 rounding.

    Adam divides by the gradient's own size, so the weights of a tensor whose gradient is mostly
    rounding (a bias before a softmax) may differ by a step: the teacher, which moved a tenth of it,
    tells more than each weight.
    """
    for line, expected in zip(metrics(run), metrics(reference), strict=True):
        assert line == pytest.approx(expected, rel=2e-4, abs=1e-6)
    run_state, reference_state = state(run, step), state(reference, step)
    weights = [name for name in reference_state if name.startswith("weights/")]
    teacher = [name for name in weights if "teacher" in name]
    assert distance(run_state, reference_state, weights) < 1e-3
    assert distance(run_state, reference_state, teacher) < 5e-4


def plain_loop(config: PretrainConfig) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same run in a page of PyTorch: weights by name, and the losses."""
    data = PretrainClips(
        read_manifest(config.data.manifest), config.data, torch.arange(40).numpy(), config.seed
    )
    model = build_pretraining(config.model(), config.seed)
    trained = {name: p for name, p in model.named_parameters() if not name.startswith("teacher.")}
    linear = {
        f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)
    }
    options = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for name, p in trained.items() if name in linear]},
            {
                "params": [p for name, p in trained.items() if name not in linear],
                "weight_decay": 0.0,
            },
        ],
        weight_decay=options.weight_decay,
        betas=(options.betas[0], options.betas[1]),
    )
    losses = []
    for step in range(config.steps):
        keys = global_batch_indices(step, 40, config.global_batch, config.seed)
        batch = apply_jitter(collate([data[key] for key in keys]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, config.steps, options.warmup_steps, options.lr, options.final_lr
            )
        targets = model(batch)
        loss = model(batch, targets, targets.keys).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), options.clip_grad)
        optimizer.step()
        m = teacher_momentum(
            step, config.steps, config.teacher.momentum, config.teacher.final_momentum
        )
        with torch.no_grad():
            for t, s in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
                t.copy_(m * t + (1 - m) * s)
        losses.append(loss.item())
    return {f"weights/{name}": p.detach() for name, p in model.named_parameters()}, losses


def test_one_process_is_a_plain_loop_in_pytorch(tmp_path, run_small, manifest):
    run = run_small(tmp_path / "run")
    config = compose(PretrainConfig, [*SMALL, f"data.manifest={manifest}"])
    expected, losses = plain_loop(config)
    assert [line["loss"] for line in metrics(run)] == pytest.approx(losses, rel=1e-4)
    trained = state(run, 4)
    print(
        distance(trained, expected, expected),
        distance(trained, expected, [n for n in expected if "teacher" in n]),
    )
    assert distance(trained, expected, expected) < 1e-3
    assert distance(trained, expected, [name for name in expected if "teacher" in name]) < 5e-4


def test_bf16_keeps_weights_in_fp32(tmp_path, run_small):
    for zero in (0, 2):
        run = run_small(
            tmp_path / f"{zero}",
            f"engine.zero_stage={zero}",
            "engine.precision=bf16",
            "steps=2",
            "checkpoint.every=1",
        )
        start, end = state(run, 1), state(run, 2)
        assert {tensor.dtype for tensor in end.values()} == {torch.float32}
        assert [name for name in start if torch.equal(start[name], end[name])] == []
        assert [name for name in end if torch.equal(end[name], end[name].bfloat16().float())] == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, run_small, manifest, number):
    """SLURM and Ctrl-C signal every process: the workers too, while the rank waits for them."""
    overrides = ["steps=12", "checkpoint.every=100", "global_batch=16", "micro_batch=4"]
    run = tmp_path / "run"
    fixed = [*SMALL, f"data.manifest={manifest}", f"run_dir={run}", *overrides, "workers=1"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mofore.train", *fixed],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_for_steps(run, 3, process)
            os.killpg(process.pid, number)
            code = process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
    output = (tmp_path / "log").read_text()
    assert code == 75, output
    assert f"Stopped by {number.name}: " in output
    assert "Rerun the same command to resume." in output
    (saved,) = (run / "checkpoints").iterdir()
    assert saved.name == f"step-{len(metrics(run))}"

    run_small(run, *overrides)
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))
    whole = run_small(tmp_path / "whole", *overrides)
    assert differing(state(run, 12), state(whole, 12)) == []
    assert metrics(run) == metrics(whole)


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl has that many lines."""
    path, end = run / "metrics.jsonl", time.monotonic() + 120
    while not path.exists() or path.read_text().count("\n") < steps:
        assert process.poll() is None, "the run ended before it was stopped"
        assert time.monotonic() < end, "the run makes no steps"
        time.sleep(0.05)
