"""The DeepSpeed engine, and what a rank holds of the training state, by parameter name.

The only module that imports deepspeed. Every run uses it, with one process or many, so that a
laptop runs the code that a cluster runs.
"""

import functools
import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.parallel.collectives import get_rank
from mofore.parallel.engine_config import EngineConfig, Precision
from mofore.types import Batch, Shard

Engine = Any  # deepspeed.DeepSpeedEngine, which has no types to check against
MOMENTS = ("exp_avg", "exp_avg_sq")


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


def start_ranks(timeout: int) -> torch.device:
    """Join the other ranks, from torchrun's or SLURM's environment; return this rank's device.

    Without such an environment this process is the only rank.
    """
    deepspeed = load_deepspeed()
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_port())}
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    accelerator = deepspeed.accelerator.get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        accelerator.set_device(_device_index(local_rank, accelerator.device_count()))
    deepspeed.init_distributed(
        "gloo" if on_cpu else accelerator.communication_backend_name(),
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=timeout),
        verbose=False,
    )
    return torch.device(accelerator.current_device_name())


def _device_index(local_rank: int, visible: int) -> int:
    """This rank's device among the visible ones; some clusters show each task only its own."""
    if visible > 1 and local_rank >= visible:
        raise UserError(
            f"{local_rank + 1} ranks of this machine see {visible} devices: start one rank per "
            "device (cluster.tasks_per_node=cluster.gpus_per_node, or torchrun --nproc_per_node)."
        )
    return local_rank if visible > 1 else 0


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
    """The engine around a module that has its initial weights."""
    settings = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_grad,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": config.precision is Precision.bf16, "dtype": "bfloat16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            # Shard every tensor, however small: the teacher's update runs on shards.
            "stage3_param_persistence_threshold": 0,
        },
    }
    return load_deepspeed().initialize(model=module, optimizer=optimizer, config=settings)[0]


def backward_and_step(engine: Engine, loss: Tensor, allowed: bool = True) -> float | None:
    """Backward of one micro-batch. The last one also updates and returns the gradient norm.

    The norm is L2, before clipping. Non-finite gradients skip the update on every rank: then the
    norm is inf or nan. `allowed=False` at the last micro-batch does the same. DeepSpeed skips such
    updates at stages 1-3; at stage 0 this function sets the optimizer's found_inf.
    """
    engine.backward(loss if allowed else loss * torch.nan)
    updates, norm = engine.is_gradient_accumulation_boundary(), None
    # DeepSpeed has the norm at other stages only
    if updates and engine.zero_optimization_stage() == 0:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # torch's GradScaler protocol: a fused optimizer changes neither weights, moments nor step
        # if set
        engine.optimizer.found_inf = (~norm.isfinite()).float()
    engine.step()
    if updates and norm is None:
        norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def set_lr(engine: Engine, lr: float) -> None:
    """The learning rate of the next update, for all parameter groups."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def state_shapes(engine: Engine) -> dict[str, list[int]]:
    """Shape of every weight, and of the two moments of every trained one, by name."""
    shapes = {}
    for name, parameter in engine.module.named_parameters():
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        for kind in ("weights", *(MOMENTS if parameter.requires_grad else ())):
            shapes[f"{kind}/{name}"] = shape
    return shapes


def local_state(engine: Engine) -> Iterator[Shard]:
    """What this rank holds of the training state, without communication.

    Stage 0: all of it. Stages 1 and 2: all weights and its shard of the moments. Stage 3: its shard
    of all.
    """
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        _link_moments(engine)
    for name, parameter in engine.module.named_parameters():
        if stage == 3:
            yield from _stage3_shards(name, parameter)
            continue
        yield Shard(f"weights/{name}", 0, parameter.detach().view(-1), True)
        if not parameter.requires_grad:
            continue
        if stage == 0:
            moments = engine.optimizer.state[parameter]
            yield from (Shard(f"{key}/{name}", 0, moments[key].view(-1), True) for key in MOMENTS)
        elif parameter._hp_mapping is not None:  # None if another rank holds all of it
            start = parameter._hp_mapping.lp_fragment_address.start
            moments = parameter._hp_mapping.optim_fragment
            yield from (Shard(f"{key}/{name}", start, moments[key], False) for key in MOMENTS)


def _stage3_shards(name: str, parameter: Any) -> Iterator[Shard]:
    start = get_rank() * parameter.ds_tensor.numel()
    # the last shard is padded
    length = min(parameter.ds_tensor.numel(), parameter.ds_numel - start)
    if length <= 0:
        return
    yield Shard(f"weights/{name}", start, parameter.ds_tensor.detach()[:length], False)
    for key in MOMENTS if parameter.requires_grad else ():
        moment = load_deepspeed().utils.safe_get_local_optimizer_state(parameter, key)
        yield Shard(f"{key}/{name}", start, moment[:length], False)


def _link_moments(engine: Engine) -> None:
    """Link moments to parameters.

    DeepSpeed 0.19 does it once, after the update of the first parameter group, when the other
    groups have no moments yet.
    """
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def init_optimizer_state(engine: Engine, batch: Batch) -> None:
    """Create optimizer state with one zero-lr, zero-gradient step; reset its step count."""
    set_lr(engine, 0.0)
    for _ in range(engine.gradient_accumulation_steps()):
        with torch.no_grad():
            targets = engine(batch)
        losses = engine(batch, targets, targets.keys)
        engine.backward(losses.total * 0.0)
        engine.step()
    _set_update_count(engine, 0)


@torch.no_grad()
def load_state(engine: Engine, read: Callable[[str, int, int], Tensor], updates: int) -> None:
    """Load what this rank holds with `read(name, start, stop)`, and set the update count."""
    for shard in local_state(engine):
        shard.values.copy_(read(shard.name, shard.start, shard.start + len(shard.values)))
    stage = engine.zero_optimization_stage()
    for parameter in engine.module.parameters():  # stages 1-3 update a second copy of the weights
        if stage == 3:
            load_deepspeed().utils.safe_set_local_fp32_param(parameter, parameter.ds_tensor)
        elif stage and parameter.requires_grad and parameter._hp_mapping is not None:
            parameter._hp_mapping.update_hp()
    _set_update_count(engine, updates)


def _set_update_count(engine: Engine, updates: int) -> None:
    """The optimizer's step count, which corrects the bias of its moments."""
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for state in inner.state.values():
        state["step"].fill_(updates)


def weight_checksum(engine: Engine, turn: int) -> int | None:
    """The bit sum of one parameter, another one each turn; None at stage 3 (sharded)."""
    if engine.zero_optimization_stage() == 3:
        return None
    parameters = list(engine.module.parameters())
    chosen = parameters[turn % len(parameters)]
    return int(chosen.detach().view(torch.int32).sum(dtype=torch.int64))
