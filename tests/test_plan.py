"""`mofore plan`: memory against what real engines and the model take; advice; the tables."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import torch

from benchmarks.plan import CHECKPOINTING, Measured, measure_activations
from benchmarks.processes import run_json
from mofore.checkpoint.reader import find_latest_checkpoint
from mofore.config import PretrainConfig, compose
from mofore.gpus import GPU, GPUS, find_gpu
from mofore.launch import submit
from mofore.launch.cli import main
from mofore.launch.plan_tables import sweep_table
from mofore.memory import checkpoint_bytes, count_parameters, rank_memory, rank_state
from mofore.plan import GIB, change_config, find_remedies, make_plan, memory_limit, suggest
from mofore.plan_sizes import plan_size
from mofore.precision import Precision
from mofore.run_folder import read_config
from mofore.step_memory import GradientUse, step_memory
from tests.ranks import run_ranks
from tests.small import TINY

BF16 = Precision.bf16
H100 = find_gpu("h100")
assert H100
# What autograd keeps of 64 clips does not fit on the small GPU.
CLIPS = ("data.manifest=none", "backbone=vit_tiny", "backbone.depth=3", "global_batch=64")
SMALL_GPU = GPU("small", 3.0, 100.0, 50.0, 10.0)


def tiny(*overrides: str) -> PretrainConfig:
    return compose(PretrainConfig, ["data.manifest=none", *TINY, "global_batch=4", *overrides])


# ------------------------------------------------------------------------------- against real runs


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_memory_of_ranks(stage: int) -> None:
    """Of two ranks with real engines: between two steps, and at most during a step."""
    size = ("backbone.depth=2", "global_batch=8", "forecaster.depth=1")
    output = run_ranks(2, "benchmarks.plan", "--rank", *size, f"engine.zero_stage={stage}")
    (line,) = (line for line in output.splitlines() if line.startswith("{"))
    found = Measured(**json.loads(line))
    assert found.planned_held == pytest.approx(found.held, rel=0.05)
    assert found.planned_peak == pytest.approx(found.peak, rel=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", [(), (CHECKPOINTING,)], ids=["whole", "checkpointed"])
def test_memory_of_a_gpu(overrides: tuple[str, ...], cuda: torch.device) -> None:
    """Of one rank's step in bf16, against torch.cuda.max_memory_allocated."""
    size = ("backbone=vit_base", "data.frames=16", "data.size=224", "global_batch=8")
    argv = ["--rank", *size, "engine.compile=never", *overrides]
    found = Measured(**run_json("benchmarks.plan", *argv, ranks=1))
    assert found.planned_peak == pytest.approx(found.peak, rel=0.05)


RECIPES = {
    "default": [],
    "checkpointed": [CHECKPOINTING],
    "every second block": ["backbone.grad_checkpoint_every=2"],
    "sparse": ["data.targets=2", "data.token_keep_ratio=0.2", "teacher.token_keep_ratio=0.3"],
    "per frame": ["backbone.attention=per_frame", "data.token_keep_ratio=1"],
    "pooled": ["forecaster.kind=mlp", "backbone.reg_tokens=4", "backbone.patch_norm=true"],
    "forecast as query": ["loss.query=forecast"],
}


@pytest.mark.parametrize("precision", [Precision.fp32, BF16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_activations_are_those_that_autograd_saves(recipe: str, precision: Precision) -> None:
    config = tiny(*RECIPES[recipe], f"engine.precision={precision.name}")
    planned = step_memory(config, 4, precision, GradientUse()).saved
    assert planned == pytest.approx(measure_activations(config, 4), rel=0.05)


def test_checkpoint_size(run_small, tmp_path: Path) -> None:
    """The bytes of all tensors of a real checkpoint."""
    run = run_small(tmp_path / "run", "steps=2")
    checkpoint, _ = find_latest_checkpoint(run)
    assert checkpoint is not None
    size = sum(4 * torch.Size(shape).numel() for shape in checkpoint.shapes.values())
    assert checkpoint_bytes(count_parameters(read_config(run / "config.yaml"))) == size


# ----------------------------------------------------------------------------------- by arithmetic


def test_state_by_stage() -> None:
    """Stage 1 shards moments and the second copy of the weights, stage 3 everything."""
    parameters = count_parameters(tiny())
    states = [rank_state(tiny(f"engine.zero_stage={n}"), 4, parameters) for n in range(4)]
    trained, fixed = 4 * parameters.trained, 4 * parameters.fixed
    assert states[0].total == 3 * trained + fixed
    assert states[1] == states[2]
    assert states[1].total == trained + 3 * trained // 4 + fixed
    assert states[3].total == pytest.approx((4 * trained + fixed) / 4, abs=8)
    offloaded = "engine.deepspeed.zero_optimization.offload_optimizer.device=cpu"
    state = rank_state(tiny("engine.zero_stage=1", offloaded), 4, parameters)
    assert state.total == trained + fixed


def test_memory_grows_with_the_micro_batch_and_shrinks_with_checkpointing() -> None:
    config = compose(PretrainConfig, [*CLIPS, "data.size=112"])
    whole, half, checkpointed = (
        rank_memory(change_config(config, changes), 1, BF16)
        for changes in ({}, {"micro_batch": 32}, {"backbone.grad_checkpoint_every": 1})
    )
    assert whole.activations == pytest.approx(2 * half.activations, rel=0.05)
    assert checkpointed.activations < 0.4 * whole.activations
    assert half.state == checkpointed.state == whole.state
    assert max(half.peak, checkpointed.peak) < whole.peak


def test_time_and_cost() -> None:
    """Twice the ranks halve the time and change no cost; checkpointing repeats a forward pass."""
    assert H100
    one, two = (make_plan(tiny("steps=10"), ranks, H100) for ranks in (1, 2))
    assert two.step_seconds == pytest.approx(one.step_seconds / 2)
    assert two.gpu_hours == pytest.approx(one.gpu_hours)
    rate = 0.4 * 989e12
    assert one.samples_per_second == pytest.approx(rate / one.flops.total)
    assert one.gpu_hours == pytest.approx(10 * 4 * one.flops.total / rate / 3600)
    slower = make_plan(tiny(CHECKPOINTING), 1, H100)
    more = (one.flops.student + one.flops.forecaster) / 3
    assert slower.step_seconds / one.step_seconds == pytest.approx(1 + more / one.flops.total)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("H100", "h100"),
        ("rtx4090", "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H20", None),
        ("cpu", None),
    ],
)
def test_gpus_by_name(name: str, found: str | None) -> None:
    gpu = find_gpu(name)
    assert (gpu and gpu.name) == found


def test_every_gpu_is_found_by_its_own_name() -> None:
    for gpu in GPUS:
        assert find_gpu(gpu.name) == gpu
        assert gpu.peak_tflops(gpu.precision) >= gpu.fp32_tflops


# ------------------------------------------------------------------------------------------ advice


def test_remedies_fit() -> None:
    """Each changes the configuration so that it fits, which it did not before."""
    config = compose(PretrainConfig, list(CLIPS))
    limit = memory_limit(SMALL_GPU)
    assert rank_memory(config, 2, BF16).peak > limit
    remedies = find_remedies(config, 2, BF16, limit)
    assert {key for remedy in remedies for key in remedy.changes} == {
        "micro_batch",
        "backbone.grad_checkpoint_every",
    }
    for remedy in remedies:
        changed = change_config(config, remedy.changes)
        assert rank_memory(changed, 2, BF16).peak == remedy.peak <= limit


def test_the_suggested_micro_batch_is_the_largest_that_fits() -> None:
    config = compose(PretrainConfig, list(CLIPS))
    limit = memory_limit(SMALL_GPU)
    (size,) = (
        remedy.changes["micro_batch"]
        for remedy in find_remedies(config, 1, BF16, limit)
        if "micro_batch" in remedy.changes
    )
    assert rank_memory(change_config(config, {"micro_batch": 2 * size}), 1, BF16).peak > limit


def test_a_stage_is_suggested_if_the_state_is_too_large() -> None:
    bucket = "engine.deepspeed.zero_optimization.reduce_bucket_size=1e6"
    config = tiny("backbone.embed_dim=768", "backbone.num_heads=12", "micro_batch=1", bucket)
    parameters, precision = count_parameters(config), Precision.fp32
    limit = rank_state(config, 4, parameters).total
    first, *_ = find_remedies(config, 4, precision, limit)
    assert first.changes["engine.zero_stage"] in (1, 2, 3)
    assert not find_remedies(config, 1, precision, limit)


def test_suggestion() -> None:
    config = compose(PretrainConfig, list(CLIPS))
    text = suggest(config, 1, 3 * GIB)
    assert "micro_batch=" in text
    assert "backbone.grad_checkpoint_every=1" in text
    assert "another process" in suggest(config, 1, 1000 * GIB).lower()
    assert "larger GPUs" in suggest(config, 1, 10**6)


# ---------------------------------------------------------------------------------------- commands


def test_command(capsys: pytest.CaptureFixture) -> None:
    argv = ["plan", *TINY, "--ranks", "2", "--gpu", "h100", "--price", "2.5", "steps=1000000"]
    assert main([*argv, "global_batch=8", "engine.zero_stage=1"]) == 0
    output = capsys.readouterr().out
    rows = {line.split("  ")[0].strip(): line for line in output.splitlines()}
    for name in ("weights", "teacher", "Adam's moments", "gradients", "activations for backward"):
        assert "GiB" in rows[name]
    assert "exact" in rows["checkpoint"]
    assert "modelled" in rows["peak of a step"]
    assert "assumed" in rows["cost of the run"]


def test_command_refuses_what_cannot_fit(capsys: pytest.CaptureFixture) -> None:
    argv = ["plan", *CLIPS, "--gpu", "mine", "--gpu-memory", "3", "--gpu-tflops", "100"]
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert "peak of a step" in captured.out
    assert "does not fit" in captured.err
    assert "backbone.grad_checkpoint_every=1" in captured.err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--gpu", "h1000"], "--gpu-memory"),
        (["--ranks", "0"], "--ranks"),
        (["--ranks", "3"], "global_batch=64"),
        (["--gpu", "v100", "engine.precision=bf16"], "v100 has no bf16"),
        (["--sweep", "backbone=vit_tiny"], "backbone="),
    ],
)
def test_mistakes(argv: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *argv]) == 2
    assert named in capsys.readouterr().err


def test_table_of_sizes() -> None:
    """Smallest first; the largest micro-batch fits, and a tenth more does not."""
    configs = {
        name: compose(PretrainConfig, [*CLIPS, f"backbone.depth={depth}"])
        for name, depth in (("deep", 4), ("flat", 2))
    }
    table = sweep_table(configs, argparse.Namespace(ranks=2, mfu=0.4), SMALL_GPU)
    assert list(table.columns[0].cells) == ["flat", "deep"]
    size = plan_size(configs["deep"], 2, SMALL_GPU, 0.4)
    assert size.stage == 1
    limit, videos = memory_limit(SMALL_GPU), size.micro_batches[0]

    def peak(number: int) -> int:
        changes = {"global_batch": 2 * number, "engine.zero_stage": 1}
        return rank_memory(change_config(configs["deep"], changes), 2, BF16).peak

    assert peak(videos) <= limit < peak(round(1.1 * videos))
    assert size.micro_batches[1] > videos


def test_submission_warns(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    """It does not refuse, and knows nothing without the type of the GPUs."""
    keys = ["backbone=vit_large", "backbone.depth=8", "data.frames=32", "global_batch=64"]
    argv = [f"data.manifest={manifest}", f"run_dir={tmp_path}", *keys, "data.fps=48"]
    cluster = ["cluster=slurm", "cluster.gpus_per_node=1"]
    with caplog.at_level(logging.WARNING):
        assert submit.submit([*argv, *cluster], dry_run=True) == 0
        assert not caplog.messages
        assert submit.submit([*argv, *cluster, "cluster.gpu_type=t4"], dry_run=True) == 0
    (message,) = caplog.messages
    assert "does not fit" in message
    assert "t4" in message
    assert "micro_batch=" in message or "grad_checkpoint_every" in message
