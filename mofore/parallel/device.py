"""The device of a rank, and what PyTorch and NCCL are told about it before the ranks meet."""

import os
import re
from pathlib import Path

import torch

from mofore.errors import UserError
from mofore.parallel.engine_config import EngineConfig
from mofore.precision import resolve_precision, set_matmul_precision

DRIVER = Path("/proc/driver/nvidia/version")


def check_driver() -> None:
    """Raise UserError if this machine's NVIDIA driver is too old for this build of PyTorch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if not torch.version.cuda or hidden or not DRIVER.exists() or torch.cuda.is_available():
        return
    version = re.search(r"\d+\.\d+[.\d]*", DRIVER.read_text())
    raise UserError(
        f"PyTorch {torch.__version__} is built for CUDA {torch.version.cuda}, which the NVIDIA "
        f"driver of this machine ({version[0] if version else 'version unknown'}) does not run, or "
        "no GPU is accessible. Update the driver, or install a build of PyTorch for an older CUDA; "
        "CUDA_VISIBLE_DEVICES= (empty) trains on the CPU."
    )


def device_index(local_rank: int, visible: int) -> int:
    """This rank's device among the `visible` ones.

    A SLURM task with `--gpus-per-task` sees its own device alone, as number 0. Raises UserError if
    there are more ranks than devices.
    """
    own_device = visible == 1 and "SLURM_PROCID" in os.environ
    if own_device and "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0
    if local_rank >= visible:
        raise UserError(
            f"{local_rank + 1} ranks of this machine see {visible} devices: start one rank per "
            "device (cluster.tasks_per_node=cluster.gpus_per_node, or torchrun --nproc_per_node)."
        )
    return local_rank


def configure_torch(config: EngineConfig, device: torch.device) -> None:
    """Set what PyTorch keeps per process: TF32 and deterministic algorithms.

    Raises UserError if the device does not support `engine.precision`.
    """
    set_matmul_precision(resolve_precision(config.precision, device))
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:
        # Filling every new tensor finds reads of uninitialised memory; it changes no result.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def set_environment(config: EngineConfig) -> None:
    """Environment variables that cuBLAS and NCCL read when they start."""
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # PyTorch would end the process at NCCL's first error, with no word about which rank was lost.
    # The heartbeat names the rank and exits with the code that resumes the run.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault(
        "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", str(collective_timeout("nccl", config.timeout))
    )


def collective_timeout(backend: str, timeout: int) -> int:
    """Seconds after which a collective fails.

    gloo raises an error, and the heartbeat then says which rank was lost. NCCL would end the
    process first, so it waits longer than the heartbeat, which needs up to twice the timeout: a
    rank can fall silent just after it has begun something.
    """
    return timeout if backend == "gloo" else 3 * timeout + 60
