"""The ranks' DeepSpeed engine: started, configured, stepped.

The only module that imports deepspeed. Every run uses it, with one process or many, so that a
laptop runs the code that a cluster runs.
"""

import functools
import logging
import os
import socket
import sys
import warnings
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.parallel.deepspeed_options import merge_options, offloads_optimizer
from mofore.parallel.device import (
    check_driver,
    collective_timeout,
    configure_torch,
    device_index,
    set_environment,
)
from mofore.parallel.engine_config import EngineConfig
from mofore.parallel.gradients import BUCKET_ELEMENTS, Gradients
from mofore.precision import Precision, resolve_precision

Engine = Any  # deepspeed.DeepSpeedEngine, which has no types to check against


@functools.cache
def load_deepspeed() -> ModuleType:
    """Import DeepSpeed with all of our adjustments to it; called once, when a rank starts.

    tests/parallel/test_deepspeed.py says which change of DeepSpeed would break each private
    attribute that this module uses.
    """
    # Otherwise DeepSpeed looks for an accelerator and logs that in every process.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed's import makes torch warn about a CUDA toolkit that nobody asked for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Deprecated functions that DeepSpeed calls.
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", rf".*{name}. is deprecated", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On CPUs DeepSpeed compiles an inference operator and joins ranks through shared memory, where
    # it waits forever for a rank that died. Training does not use it. (The attribute
    # deepspeed.comm.torch is torch itself, so the module comes from sys.modules.)
    vars(sys.modules["deepspeed.comm.torch"])["build_shm_op"] = lambda: None
    return deepspeed


def start_ranks(config: EngineConfig) -> torch.device:
    """Join the other ranks, from torchrun's or SLURM's environment; return this rank's device.

    Without such an environment this process is the only rank. Raises UserError if there are more
    ranks than devices, the driver is too old, or the device does not support `engine.precision`.
    """
    check_driver()
    set_environment(config)
    deepspeed = load_deepspeed()
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    accelerator = deepspeed.accelerator.get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    backend = "gloo" if on_cpu else accelerator.communication_backend_name()
    if not on_cpu:
        index = device_index(local_rank, accelerator.device_count())
        os.environ["LOCAL_RANK"] = str(index)  # DeepSpeed reads it again, as the device's number
        accelerator.set_device(index)
    deepspeed.init_distributed(
        backend,
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=collective_timeout(backend, config.timeout)),
        verbose=False,
    )
    device = torch.device(accelerator.current_device_name())
    configure_torch(config, device)
    return device


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def build_engine(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: EngineConfig,
    micro_batch: int,
    accumulation: int,
    clip_grad: float,
) -> Engine:
    """The engine around a module that has its initial weights.

    Raises UserError for an option of `engine.deepspeed` that DeepSpeed does not accept.
    """
    device = torch.device(load_deepspeed().accelerator.get_accelerator().current_device_name())
    precision = resolve_precision(config.precision, device)
    own_gradients = config.zero_stage < 3 and not offloads_optimizer(config.deepspeed)
    settings = merge_options(deepspeed_settings(config, precision, own_gradients), config.deepspeed)
    settings |= {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0 if own_gradients else clip_grad,
    }
    try:
        engine = load_deepspeed().initialize(model=module, optimizer=optimizer, config=settings)[0]
    except (ValueError, TypeError, AssertionError) as error:
        if not config.deepspeed:
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"engine.deepspeed={config.deepspeed}: DeepSpeed refuses it: {reason}"
        ) from error
    engine.mofore_gradients = Gradients(engine, clip_grad) if own_gradients else None
    return engine


def deepspeed_settings(
    config: EngineConfig, precision: Precision, own_gradients: bool
) -> dict[str, Any]:
    """DeepSpeed's configuration, without the user's options and the batch sizes.

    own_gradients: whether `Gradients` computes norm and clipping.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": BUCKET_ELEMENTS}
    if config.zero_stage in (1, 2):
        # Reduce gradients while backward runs.
        zero |= {"overlap_comm": True, "compute_grad_norm": not own_gradients}
    if config.zero_stage == 3:
        # Shard every tensor, however small: the teacher's update runs on shards.
        zero["stage3_param_persistence_threshold"] = 0
    return {
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW runs on the host as well
        "timers": {"throughput": {"enabled": False}},  # waits for the device twice a step
        "torch_autocast": {
            "enabled": precision is Precision.bf16,
            "dtype": "bfloat16",
            # DeepSpeed would reduce the gradients of these modules in bf16.
            "lower_precision_safe_modules": [],
        },
        "zero_optimization": zero,
    }


def backward_and_step(engine: Engine, loss: Tensor) -> Tensor | None:
    """Backward of one micro-batch. The last one also updates and returns the gradient norm.

    The norm is f32 [], L2, before clipping. Gradients that are not finite skip the update on every
    rank: then the norm is inf or nan. At ZeRO stages 0 to 2 nothing waits for the device, unless
    the optimizer is on the host.
    """
    engine.backward(loss)
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    if engine.mofore_gradients:
        norm = engine.mofore_gradients.finish()
        engine.step()
        return norm
    engine.step()
    return torch.as_tensor(engine.get_global_grad_norm(), dtype=torch.float32, device=engine.device)


def set_lr(engine: Engine, lr: float) -> None:
    """The learning rate of the next update, for all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr
