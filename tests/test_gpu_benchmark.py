"""benchmarks.gpu: every part runs, with tiny shapes; failures, skips and the end of the time."""

import argparse
import importlib
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_memory
from benchmarks.gpu import PARTS, Part, parse_arguments, run_parts
from benchmarks.gpu_memory import largest_that_fits, micro_batch
from benchmarks.gpu_results import RESULTS, Column, Report, read_part
from benchmarks.gpu_speed import VIDEOMAE, VJEPA2, SpeedTable
from benchmarks.gpu_syncs import calling_line
from benchmarks.training_step import RepeatedStep


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def options(
    request: pytest.FixtureRequest, tmp_path: Path, environment: None
) -> argparse.Namespace:
    """Those of --tiny on a CPU, and on a GPU where there is one."""
    if request.param == "cuda":
        request.getfixturevalue("cuda")
    elif torch.cuda.is_available():
        pytest.skip("untested here: the parts on a CPU, as MoFore trains on this machine's GPU")
    return parse_arguments(["--device", request.param, "--tiny", "--out", str(tmp_path)])


# The first two compare this process with new ones, and parts that use ZeRO-3 replace torch's linear
# in it, which rounds differently under autocast. For the third, cuBLAS must not have started.
NEED_A_NEW_PROCESS = ("resume", "deterministic", "deterministic_cost")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PARTS if name not in NEED_A_NEW_PROCESS])
def test_a_part_prints_and_records_its_table(
    name: str, options: argparse.Namespace, capsys: pytest.CaptureFixture, zero3: None
) -> None:
    module, function = PARTS[name].function.split(".")
    report = Report(options.out, name)
    getattr(importlib.import_module(f"benchmarks.{module}"), function)(options, report)
    recorded = read_part(options.out, name)
    printed = capsys.readouterr().out
    assert recorded["environment"]["torch"] == torch.__version__
    for note in recorded["notes"]:
        assert note in printed
    if name != "trace":  # its table is the text of `mofore profile`
        assert all(recorded["tables"])
        rows = [row for table in recorded["tables"] for row in table]
        assert len(rows) >= 1
        for row in rows:
            rates = [value for key, value in row.items() if key.endswith("per_second")]
            assert all(rate > 0 for rate in rates)


def test_baselines_count_flops_and_take_steps(options: argparse.Namespace) -> None:
    pytest.importorskip("transformers", reason="untested here: V-JEPA 2's and VideoMAE's steps")
    from benchmarks.baseline_steps import videomae_step, vjepa2_step

    table = SpeedTable(options, Report(options.out, "speed"))
    for name, build in ((VJEPA2, vjepa2_step), (VIDEOMAE, videomae_step)):
        row = table.baseline(name, build)
        assert row is not None
        assert row["tflop"] > 0
        assert row["samples_per_second"] > 0


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 1000])
def test_the_search_ends_within_a_sixteenth_below_the_limit(limit: int) -> None:
    for fitting in range(limit + 20):
        found = largest_that_fits(lambda size, fitting=fitting: size <= fitting, 4, limit)
        expected = min(fitting, limit)
        assert found <= expected
        assert expected - found <= found / 16


def test_the_search_survives_running_out_of_memory_in_backward(
    options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step whose backward fails leaves the engine able to make the next one."""

    class Limited(RepeatedStep):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            self.engine.module.student.register_forward_hook(self.limit)

        def limit(self, module: object, inputs: object, tokens: torch.Tensor) -> None:
            if len(self.batch.rows) > 3 and tokens.requires_grad:
                tokens.register_hook(self.fail)

        def fail(self, gradient: torch.Tensor) -> None:
            raise torch.OutOfMemoryError("as if")

    monkeypatch.setattr(gpu_memory, "RepeatedStep", Limited)
    micro_batch(options, Report(options.out, "micro_batch"))
    (rows,) = read_part(options.out, "micro_batch")["tables"]
    assert [row["micro_batch"] for row in rows] == [3, 3]
    assert all(max(row["sizes"]) > 3 for row in rows)


def start(code: str) -> subprocess.Popen:
    """A process that stands for a part: it waits for the line that starts it, then runs `code`."""
    command = [sys.executable, "-c", f"input()\n{code}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def test_a_failing_a_hanging_and_an_unfitting_part_do_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    codes = {
        "fails": "raise SystemExit(1)",
        "works": "print('a row')",
        "long": "",
        "hangs": "import time; print('before', flush=True); time.sleep(600)",
    }
    seconds = dict.fromkeys(codes, 0) | {"long": 3600}
    parts = {name: Part("", seconds[name], "?") for name in codes}
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "prepare_part", lambda name, _: start(codes[name]))
    begin = time.monotonic()
    assert run_parts([*parts], argparse.Namespace(minutes=0.05, out=tmp_path)) == 1
    assert time.monotonic() - begin < 60
    printed = capfd.readouterr().out
    assert "a row" in printed
    assert "before" in printed
    assert "failed: fails, hangs" in printed
    assert read_part(tmp_path, "fails")["error"] == "exit code 1"
    assert "skipped" in read_part(tmp_path, "long")
    assert read_part(tmp_path, "hangs")["error"] == "stopped: the time was up"


@pytest.mark.slow
def test_the_command_runs_parts_in_processes_of_their_own(tmp_path: Path) -> None:
    parts = ["deterministic_cost", "deterministic"]
    argv = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", *parts]
    command = [sys.executable, "-m", "benchmarks.gpu", *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / RESULTS).read_text())
    assert [*document["parts"]] == parts
    assert all(part["seconds"] > 0 for part in document["parts"].values())
    runs = {row["run"]: row for row in document["parts"]["deterministic"]["tables"][0]}
    assert [*runs] == ["uninterrupted", "rolled back", "resumed"]
    assert {row["differing"] for row in runs.values()} == {0}
    assert len({row["loss"] for row in runs.values()}) == 1


def test_a_later_run_of_one_part_keeps_the_results_of_the_others(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0), ("a", float("nan"))):
        report = Report(tmp_path, name)
        report.table(Column("x", "x", 5, ".1f"))
        report.row(x=value)
    assert read_part(tmp_path, "a")["tables"] == [[{"x": None}]]  # JSON has no NaN
    assert read_part(tmp_path, "b")["tables"] == [[{"x": 2.0}]]


def test_a_synchronisation_is_blamed_on_the_innermost_line_of_the_project() -> None:
    frames = [
        ("/home/me/mofore/trainer.py", 10, "run"),
        ("/home/me/mofore/step.py", 20, "__call__"),
        ("/usr/lib/torch/functional.py", 30, "stack"),
        ("/home/me/benchmarks/gpu_syncs.py", 40, "_record"),
    ]
    stack = traceback.StackSummary.from_list([(*frame, None) for frame in frames])
    assert calling_line(stack) == "mofore/step.py:20 __call__"
