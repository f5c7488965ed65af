"""Metrics files, progress, the arithmetic of MFU, and wandb, which runs offline here."""

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mofore import wandb_log
from mofore.errors import UserError
from mofore.metrics import (
    MetricsLog,
    ProgressBar,
    StepCost,
    peak_memory_gib,
    progress_numbers,
)
from mofore.wandb_log import WandbLog, run_id, start_wandb


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def scalars(run_dir: Path, name: str) -> dict[int, float]:
    """A metric's TensorBoard values by step."""
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    if name not in events.Tags()["scalars"]:
        return {}
    return {event.step: event.value for event in events.Scalars(name)}


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 3) as log:
        log.write(1, loss=2.0, effective_rank=7.0, mfu=None)
        log.write(2, loss=1.5, effective_rank=None, mfu=None)
        log.write(3, loss=float("nan"), effective_rank=8.0, mfu=None)
    assert lines(tmp_path) == [
        {"step": 1, "loss": 2.0, "effective_rank": 7.0},
        {"step": 2, "loss": 1.5},
        {"step": 3, "loss": None, "effective_rank": 8.0},
    ]
    assert scalars(tmp_path, "effective_rank") == {1: 7.0, 3: 8.0}
    assert scalars(tmp_path, "mfu") == {}


def test_the_progress_shows_the_last_known_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(ProgressBar, "update", lambda _, step, numbers: shown.append(numbers))
    with MetricsLog(tmp_path, 0, 2) as log:
        log.write(1, loss=2.0, effective_rank=7.0, communication_fraction=0.126)
        log.write(2, loss=1.5, effective_rank=None, communication_fraction=None)
    assert shown == [
        {"loss": "2", "rank": "7", "communication": "13%"},
        {"loss": "1.5", "rank": "7", "communication": "13%"},
    ]


def test_the_progress_shows_tflops_where_mfu_is_not_known() -> None:
    measured = {"tflops_per_second": 405.0, "peak_memory_gib": 31.25}
    assert progress_numbers(measured) == {"TFLOP/s": "405", "GiB": "31.2"}
    assert progress_numbers(measured | {"mfu": 0.41}) == {"MFU": "41%", "GiB": "31.2"}


def test_a_rollback_replaces_later_steps(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0, 3) as log:
        for step in (1, 2):
            log.write(step, loss=float(step))
        log.rewind(1)
        log.write(2, loss=20.0)
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 20.0]
    assert scalars(tmp_path, "loss") == {1: 1.0, 2: 20.0}


def test_mfu() -> None:
    """A step of 80 TFLOP that takes 2 s on 4 devices of 100 TFLOP/s uses a tenth of them."""
    cost = StepCost(flops=80e12, world_size=4, peak_flops=100e12)
    assert cost.metrics(2.0) == {"mfu": pytest.approx(0.1), "tflops_per_second": pytest.approx(10)}
    # Weak scaling at equal speed changes neither.
    larger = StepCost(flops=160e12, world_size=8, peak_flops=100e12)
    assert larger.metrics(2.0) == cost.metrics(2.0)
    assert cost._replace(peak_flops=None).metrics(2.0)["mfu"] is None


def test_peak_memory_grows_by_what_is_allocated_and_stays() -> None:
    device = torch.device("cpu")
    before = peak_memory_gib(device)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    now = pages * resource.getpagesize() / 2**30
    held = torch.ones(int((before - now + 0.25) * 2**28))  # an earlier peak, and 0.25 GiB
    peak = peak_memory_gib(device)
    assert peak - before == pytest.approx(0.25, abs=0.05)
    del held
    assert peak_memory_gib(device) == pytest.approx(peak, abs=0.01)


@pytest.mark.gpu
def test_peak_memory_of_a_gpu(cuda: torch.device) -> None:
    torch.cuda.reset_peak_memory_stats(cuda)
    before = peak_memory_gib(cuda)
    held = torch.ones(2**28, device=cuda)
    del held
    assert peak_memory_gib(cuda) - before == pytest.approx(1.0, abs=0.01)


# -------------------------------------------------------------------------------------------- wandb


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real package without a network; its process ends with the test."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed: nothing is logged to it")
    before = dict(os.environ)
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("ERROR_REPORTING", "false")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield
    with contextlib.suppress(ConnectionError):  # a test has ended the process
        wandb.teardown()
    for name in set(os.environ) - set(before):
        del os.environ[name]


def wandb_records(run_dir: Path, kind: str) -> list:
    """The records of one kind that wandb has written, of all starts of the run."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    datastore = pytest.importorskip(
        "wandb.sdk.internal.datastore", reason="this version of wandb cannot read its own files"
    )
    wandb.teardown()  # its process writes the rest of the file when it ends
    found = []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        store = datastore.DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == kind:
                found.append(getattr(record, kind))
        store.close()
    return found


def history(run_dir: Path) -> list[tuple[int, float]]:
    """(step, loss) of every record, in their order."""
    pairs = []
    for record in wandb_records(run_dir, "history"):
        items = {".".join(item.nested_key) or item.key: item.value_json for item in record.item}
        pairs.append((int(items["step"]), float(items["loss"])))
    return pairs


def test_wandb_gets_every_step_also_those_that_a_rollback_repeats(
    tmp_path: Path, offline: None
) -> None:
    run = start_wandb("videos", tmp_path, {"data": {"size": 32}})
    assert run is not None
    with MetricsLog(tmp_path, 0, 3, run) as log:
        for step in (1, 2):
            log.write(step, loss=float(step))
        log.rewind(1)
        log.write(2, loss=20.0)
    assert history(tmp_path) == [(1, 1.0), (2, 2.0), (2, 20.0)]
    (started,) = wandb_records(tmp_path, "run")[:1]
    assert started.project == "videos"
    config = {item.key: item.value_json for item in started.config.update}
    assert json.loads(config["data"]) == {"size": 32}


def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path: Path, offline: None) -> None:
    for step in (1, 2):
        run = start_wandb("videos", tmp_path, {"workers": step})
        with MetricsLog(tmp_path, step - 1, 2, run) as log:
            log.write(step, loss=0.0)
    assert {run.run_id for run in wandb_records(tmp_path, "run")} == {run_id(tmp_path)}
    assert [step for step, _ in history(tmp_path)] == [1, 2]
    assert run_id(tmp_path) != run_id(tmp_path / "wandb")


def test_a_training_logs_what_is_in_metrics_jsonl(
    tmp_path: Path, offline: None, run_small: Callable[..., Path]
) -> None:
    run = run_small(tmp_path / "run", "wandb_project=videos")
    assert history(run) == [(line["step"], line["loss"]) for line in lines(run)]
    assert len(lines(run)) == 4
    run_small(run, "wandb_project=null", "steps=4")  # the key may change


def test_training_goes_on_without_the_process_of_wandb(
    tmp_path: Path, offline: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a stop signal reaches all processes of a job."""
    run = start_wandb("videos", tmp_path, {})
    children = subprocess.run(
        ["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    pids = [int(line.split()[0]) for line in children.stdout.splitlines() if "wandb" in line]
    assert pids
    with caplog.at_level(logging.WARNING), MetricsLog(tmp_path, 0, 40, run) as log:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for step in range(1, 41):
            log.write(step, loss=0.0)
    assert len(lines(tmp_path)) == 40
    (warning,) = [each for each in caplog.records if each.name == "mofore.wandb_log"]
    assert "metrics.jsonl" in warning.getMessage()


def test_without_the_package_the_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start_wandb(None, tmp_path, {}) is None
    monkeypatch.setattr(wandb_log.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install mofore\[wandb\]"):
        start_wandb("videos", tmp_path, {})


def test_without_a_login_the_error_names_it(
    tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="wandb login"):
        WandbLog("videos", tmp_path, {})
