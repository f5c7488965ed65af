"""Module + optimizer -> DeepSpeed engine; what a rank holds of the training state at any stage, by parameter name.

The only module that imports deepspeed. Every run goes through it, one process or many, so that a laptop runs
the code that a cluster will run.
"""

import importlib
import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
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
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_fp32_param
from torch import Tensor, nn

from mofore.distributed import rank
from mofore.errors import UserError
from mofore.types import Batch, Piece

# On CPUs DeepSpeed compiles an operator for inference and meets the other ranks in shared memory, where it waits
# without end for one that died. Training uses nothing of it. (The attribute deepspeed.comm.torch is torch itself.)
vars(importlib.import_module("deepspeed.comm.torch"))["build_shm_op"] = lambda: None

Engine = Any  # deepspeed.DeepSpeedEngine: it has no types to check against
MOMENTS = ("exp_avg", "exp_avg_sq")


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"  # torch.autocast: weights, moments and teacher stay fp32


@dataclass
class EngineConfig:
    zero: int = 0  # ZeRO stage
    precision: Precision = Precision.fp32
    timeout: int = 600  # seconds after which a silent or stuck rank ends the run
    compare_every: int = 20  # steps between two comparisons of what must be equal on all ranks

    def __post_init__(self) -> None:
        if self.zero not in (0, 1, 2, 3):
            raise UserError(f"engine.zero={self.zero}: ZeRO has the stages 0, 1, 2 and 3.")
        if min(self.timeout, self.compare_every) < 1:
            raise UserError(
                f"engine.timeout={self.timeout} (seconds to wait for a rank) and "
                f"engine.compare_every={self.compare_every} (steps) must be at least 1."
            )


def start_ranks(timeout: int) -> torch.device:
    """Join the other ranks (torchrun's or SLURM's environment, else alone) and return this rank's device."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        accelerator.set_device(_own_device(local_rank, accelerator.device_count()))
    deepspeed.init_distributed(
        accelerator.communication_backend_name() if accelerator.device_name() != "cpu" else "gloo",
        auto_mpi_discovery=False, timeout=timedelta(seconds=timeout), verbose=False,
    )  # fmt: skip
    return torch.device(accelerator.current_device_name())


def _own_device(local_rank: int, seen: int) -> int:
    """Of the devices that this process sees: its own. Some clusters show each task only one. UserError where it has none."""
    if seen > 1 and local_rank >= seen:
        raise UserError(
            f"{local_rank + 1} ranks of this machine see {seen} devices: start one rank a device "
            "(cluster.tasks_per_node=cluster.gpus_per_node, or torchrun --nproc_per_node)."
        )
    return local_rank if seen > 1 else 0


def free_port() -> int:
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


def backward_and_step(engine: Engine, loss: Tensor, allowed: bool = True) -> float | None:
    """Backward of one micro-batch; at the last of a step the update too, and the gradient's norm before clipping.

    A gradient that is not finite updates nothing, on any rank: then the norm is inf or nan. `allowed=False` at
    the last micro-batch makes it so. DeepSpeed skips such updates at stages 1 to 3, stage 0 is taught it here.
    """
    engine.backward(loss if allowed else loss * torch.nan)
    updates, norm = engine.is_gradient_accumulation_boundary(), None
    if updates and engine.zero_optimization_stage() == 0:  # DeepSpeed tells it at the other stages only
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in engine.module.parameters() if p.grad is not None]
        )
        # what torch's gradient scaler tells a fused optimizer: the kernel leaves weights, moments and count alone
        engine.optimizer.found_inf = (~norm.isfinite()).float()
    engine.step()
    if updates and norm is None:
        norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def state_shapes(engine: Engine) -> dict[str, list[int]]:
    """Shape of every tensor of the training state by its name: a weight each parameter, two moments each trained one."""
    shapes = {}
    for name, parameter in engine.module.named_parameters():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        for kind in ("weights", *(MOMENTS if parameter.requires_grad else ())):
            shapes[f"{kind}/{name}"] = shape
    return shapes


def held_state(engine: Engine) -> Iterator[Piece]:
    """What this rank holds of the training state, without communication: at stage 0 all of it, at 1 and 2 all
    weights and its shard of the moments, at 3 its shard of everything.
    """
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        _link_moments(engine)
    for name, parameter in engine.module.named_parameters():
        trained = parameter.requires_grad
        if stage == 3:
            start = rank() * parameter.ds_tensor.numel()
            length = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)  # the last shard is padded
            if length <= 0:
                continue
            yield Piece(f"weights/{name}", start, parameter.ds_tensor.detach()[:length], False)
            for key in MOMENTS if trained else ():
                yield Piece(
                    f"{key}/{name}", start, safe_get_local_optimizer_state(parameter, key)[:length], False
                )
            continue
        yield Piece(f"weights/{name}", 0, parameter.detach().view(-1), True)
        if not trained:
            continue
        if stage == 0:
            moments = engine.optimizer.state[parameter]
            yield from (Piece(f"{key}/{name}", 0, moments[key].view(-1), True) for key in MOMENTS)
        elif parameter._hp_mapping is not None:  # None where another rank has all of it
            start = parameter._hp_mapping.lp_fragment_address.start
            moments = parameter._hp_mapping.optim_fragment
            yield from (Piece(f"{key}/{name}", start, moments[key], False) for key in MOMENTS)


def _link_moments(engine: Engine) -> None:
    """DeepSpeed 0.19 links moments to parameters after the update of the first parameter group, when the other
    groups have none yet, and never again: link them here.
    """
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def make_moments(engine: Engine, batch: Batch) -> None:
    """The optimizer makes its state at its first update. So one is made from any batch, with gradients of zero
    and a rate of zero, which changes no weight; then it has made none.
    """
    set_rate(engine, 0.0)
    for _ in range(engine.gradient_accumulation_steps()):
        with torch.no_grad():
            targets = engine(batch)
        losses = engine(batch, targets, targets.keys)
        engine.backward(losses.total * 0.0)
        engine.step()
    _set_updates(engine, 0)


@torch.no_grad()
def fill_state(engine: Engine, read: Callable[[str, int, int], Tensor], updates: int) -> None:
    """Give every piece that this rank holds its values, `read(name, start, stop)`, and the optimizer its count of
    updates. Each rank asks for no more than it holds.
    """
    for piece in held_state(engine):
        piece.values.copy_(read(piece.name, piece.start, piece.start + len(piece.values)))
    for parameter in engine.module.parameters():  # stages 1 to 3 keep what they update in a second copy
        if engine.zero_optimization_stage() == 3:
            safe_set_local_fp32_param(parameter, parameter.ds_tensor)
        elif (
            engine.zero_optimization_stage() and parameter.requires_grad and parameter._hp_mapping is not None
        ):
            parameter._hp_mapping.update_hp()
    _set_updates(engine, updates)


def _set_updates(engine: Engine, updates: int) -> None:
    """The optimizer's own count of updates, which corrects the bias of its moments."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        state["step"].fill_(updates)


def fingerprint(engine: Engine, turn: int) -> int | None:
    """The sum of the bits of one parameter, another each turn; None at stage 3, where each rank holds another part."""
    if engine.zero_optimization_stage() == 3:
        return None
    parameters = list(engine.module.parameters())
    return int(parameters[turn % len(parameters)].detach().view(torch.int32).sum(dtype=torch.int64))


def set_rate(engine: Engine, rate: float) -> None:
    """The learning rate of the coming update, for all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
