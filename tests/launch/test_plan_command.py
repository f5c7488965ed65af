"""`mofore plan` and the warning of `mofore submit`."""

import logging
from pathlib import Path

import pytest

from mofore.launch import submit
from mofore.launch.cli import main
from tests.small import LARGE_BATCH, TINY


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
    argv = ["plan", *LARGE_BATCH, "--gpu", "mine", "--gpu-memory", "2.5", "--gpu-tflops", "100"]
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
        (["--mfu", "40"], "--mfu"),
        (["--ranks", "3"], "global_batch=64"),
        (["--gpu", "v100", "engine.precision=bf16"], "v100 has no bf16"),
        (["--sweep", "backbone=vit_tiny"], "backbone="),
    ],
)
def test_mistakes(argv: list[str], named: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *argv]) == 2
    assert named in capsys.readouterr().err


def test_options_of_a_gpu(capsys: pytest.CaptureFixture) -> None:
    """The type's memory and rate may be overridden; an unknown type needs both."""
    argv = ["plan", *TINY, "global_batch=4"]
    for gpu, memory in (("a100", "40"), ("mine", "50")):
        given = ["--gpu", gpu, "--gpu-memory", memory, "--gpu-tflops", "123"]
        assert main([*argv, *given]) == 0
        output = " ".join(capsys.readouterr().out.split())
        assert f"{0.92 * float(memory):.1f} GiB" in output
        assert "40% of 123 TFLOP/s" in output


def test_submission_warns(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    """It does not refuse, and knows nothing without the type of the GPUs."""
    keys = [each for each in LARGE_BATCH if "manifest" not in each and "batch" not in each]
    argv = [f"data.manifest={manifest}", f"run_dir={tmp_path}", *keys, "global_batch=512"]
    cluster = ["cluster=slurm", "cluster.gpus_per_node=1"]
    with caplog.at_level(logging.WARNING):
        assert submit.submit([*argv, *cluster], dry_run=True) == 0
        assert not caplog.messages
        assert submit.submit([*argv, *cluster, "cluster.gpu_type=t4"], dry_run=True) == 0
    (message,) = caplog.messages
    assert "does not fit" in message
    assert "t4" in message
    assert "micro_batch=" in message or "grad_checkpoint_every" in message
