"""Device and environment of a rank. No test machine has several GPUs: mocks stand in for them."""

import os
from pathlib import Path

import pytest
import torch

from mofore.errors import UserError
from mofore.parallel import device
from mofore.parallel.device import (
    check_driver,
    collective_timeout,
    configure_torch,
    device_index,
    set_environment,
)
from mofore.parallel.engine_config import EngineConfig
from mofore.precision import Precision, resolve_precision


@pytest.fixture
def bare(monkeypatch) -> pytest.MonkeyPatch:
    """An environment in which neither SLURM nor torchrun started this process."""
    for name in ("SLURM_PROCID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_each_rank_takes_its_own_device(bare):
    assert [device_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]


def test_a_slurm_task_that_sees_one_device_takes_it(bare):
    """--gpus-per-task shows each task its own device as number 0."""
    bare.setenv("SLURM_PROCID", "3")
    assert device_index(3, 1) == 0


@pytest.mark.parametrize("torchrun_inside_slurm", [False, True])
def test_more_ranks_than_devices_raise(bare, torchrun_inside_slurm):
    if torchrun_inside_slurm:
        bare.setenv("SLURM_PROCID", "0")
        bare.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(UserError, match="2 ranks of this machine see 1 devices: start one rank"):
        device_index(1, 1)


def test_an_old_driver_is_named(monkeypatch, tmp_path):
    """A mock stands in for a machine with a GPU whose driver is older than the build of torch."""
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27\n")
    monkeypatch.setattr(device, "DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"CUDA 13\.0.*470\.82\.01.*Update the driver"):
        check_driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user wants the CPU
    check_driver()


def test_nothing_is_wrong_without_a_gpu(monkeypatch):
    monkeypatch.setattr(device, "DRIVER", Path("/nowhere/version"))
    check_driver()


@pytest.mark.parametrize("timeout", [1, 600, 7200])
def test_nccl_waits_longer_than_the_heartbeat(timeout):
    """The heartbeat needs its timeout, a period between two reports, and a rank's own start."""
    assert collective_timeout("nccl", timeout) > 2 * timeout + 2 * min(5, timeout / 5)
    assert collective_timeout("gloo", timeout) == timeout


def test_nccl_does_not_end_the_process_before_the_heartbeat(environment, monkeypatch):
    for name in ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_environment(EngineConfig(timeout=100))
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert int(os.environ["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"]) > 200
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_environment(EngineConfig(deterministic=True))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_deterministic_algorithms_and_tf32_follow_the_configuration():
    cpu = torch.device("cpu")
    try:
        configure_torch(EngineConfig(deterministic=True, precision=Precision.tf32), cpu)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        configure_torch(EngineConfig(), cpu)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"  # auto is fp32 on a CPU


def test_bf16_on_a_gpu_without_it_raises(monkeypatch):
    """A mock stands in for an old GPU."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    gpu = torch.device("cuda", 0)
    with pytest.raises(UserError, match="precision=bf16: Tesla V100 has no bf16"):
        resolve_precision(Precision.bf16, gpu)
    assert resolve_precision(Precision.auto, gpu) is Precision.tf32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_precision(Precision.auto, gpu) is Precision.bf16
    assert resolve_precision(Precision.fp32, gpu) is Precision.fp32
