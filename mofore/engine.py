"""Module + optimizer -> DeepSpeed engine; the optimizer's moments of any stage by parameter name.

The only module that imports deepspeed. Every run goes through it, one process or many, so that a laptop runs
the code that a cluster will run.
"""

import logging
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

import torch

if not torch.cuda.is_available():  # else DeepSpeed searches for an accelerator, and says so in every process
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
logging.getLogger("torch.utils.cpp_extension").setLevel(
    logging.ERROR
)  # it misses a CUDA that nobody asked for
for _name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # DeepSpeed's business, not the user's
    warnings.filterwarnings("ignore", rf".*{_name}. is deprecated", FutureWarning)

import deepspeed
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from mofore.distributed import gather, rank, world
from mofore.errors import UserError
from mofore.types import Batch

Engine = Any  # deepspeed.DeepSpeedEngine: it has no types to check against
MOMENTS = ("exp_avg", "exp_avg_sq")


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"  # torch.autocast: weights, moments and teacher stay fp32


@dataclass
class EngineConfig:
    zero: int = 0  # ZeRO stage
    precision: Precision = Precision.fp32
    timeout: int = 600  # seconds that a collective waits for a lost rank

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise UserError(f"engine.zero={self.zero}: ZeRO has the stages 0, 1, 2 and 3.")
        if self.timeout < 1:
            raise UserError(
                f"engine.timeout={self.timeout}: give the seconds to wait for a rank, at least 1."
            )


def start_ranks(timeout: int) -> torch.device:
    """Join the other ranks (torchrun's or SLURM's environment, else alone) and return this rank's device."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(local_rank)
    deepspeed.init_distributed(
        accelerator.communication_backend_name() if accelerator.device_name() != "cpu" else "gloo",
        auto_mpi_discovery=False, timeout=timedelta(seconds=timeout), verbose=False,
    )  # fmt: skip
    return torch.device(accelerator.current_device_name())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def build_engine(
    module: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig,
    micro_batch: int, accumulation: int, clip: float,
) -> Engine:  # fmt: skip
    """The engine around a module whose weights are already those to start from."""
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.precision is Precision.bf16, "dtype": "bfloat16"},
        "zero_optimization": {
            "stage": config.zero,
            # every tensor is sharded, however small, so that the teacher's update finds all of it in shards
            "stage3_param_persistence_threshold": 0,
        },
    }
    return deepspeed.initialize(model=module, optimizer=optimizer, config=settings)[0]


def backward_and_step(engine: Engine, loss: Tensor) -> float | None:
    """Backward of one micro-batch; at the last of a step the update too, and the gradient's norm before clipping."""
    engine.backward(loss)
    updates, norm = engine.is_gradient_accumulation_boundary(), None
    if updates and engine.zero_optimization_stage() == 0:  # DeepSpeed tells it at the other stages only
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in engine.module.parameters() if p.grad is not None]
        )
    engine.step()
    if updates and norm is None:
        norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def full_weight(parameter: Any) -> Tensor:
    """The whole fp32 tensor of a parameter, a collective under ZeRO-3: shards are gathered as they are kept.

    Not through `GatheredParameters`: under autocast that gathers in bf16.
    """
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    flat = gather(parameter.ds_tensor.detach().flatten())
    return flat[: parameter.ds_numel].view(parameter.ds_shape)


def full_moment(engine: Engine, parameter: Any, key: str) -> Tensor:
    """One of MOMENTS of a parameter, whole; a collective where it is sharded."""
    if engine.zero_optimization_stage() == 0:
        return engine.optimizer.state[parameter][key]
    _link_moments(engine)
    return safe_get_full_optimizer_state(parameter, key)


def _link_moments(engine: Engine) -> None:
    """DeepSpeed 0.19 links moments to parameters after the update of the first parameter group, when the other
    groups have none yet, and never again: link them here.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def restore_optimizer(engine: Engine, batch: Batch, read: Callable[[str], Tensor], step: int) -> None:
    """Give every trained parameter its moments (`read("exp_avg/NAME")`, whole) and the optimizer its count.

    The optimizer makes its state at its first update. So one is made from any batch, with gradients of zero
    and a rate of zero, which changes no weight; then the state is filled.
    """
    set_rate(engine, 0.0)
    for _ in range(engine.gradient_accumulation_steps()):
        with torch.no_grad():
            targets = engine(batch)
        losses = engine(batch, targets, targets.keys.flatten(0, 1))
        engine.backward(losses.total * 0.0)
        engine.step()
    _link_moments(engine)
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            for key in MOMENTS:
                _set_moment(engine, parameter, key, read(f"{key}/{name}").to(engine.device))
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        state["step"].fill_(step)


def _set_moment(engine: Engine, parameter: Any, key: str, value: Tensor) -> None:
    if engine.zero_optimization_stage() == 0:
        engine.optimizer.state[parameter][key].copy_(value)
    elif engine.zero_optimization_stage() < 3:
        safe_set_full_optimizer_state(parameter, value, key)
    else:  # the whole-tensor call fails where the last shard is padded, so hand over our own shard
        length = parameter.ds_tensor.numel()
        padded = F.pad(value.flatten(), (0, length * world() - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[rank() * length :][:length], key)


def set_rate(engine: Engine, rate: float) -> None:
    """The learning rate of the coming update, for all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
