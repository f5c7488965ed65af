"""What a rank holds of the training state, by parameter name, at every ZeRO stage."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mofore.parallel.collectives import get_rank
from mofore.parallel.engine import Engine, backward_and_step, load_deepspeed, set_lr
from mofore.types import Batch, Shard

MOMENTS = ("exp_avg", "exp_avg_sq")


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
        backward_and_step(engine, losses.total * 0.0)
    _set_update_count(engine, 0)


@torch.no_grad()
def load_state(engine: Engine, load: Callable[[Iterator[Shard]], None], updates: int) -> None:
    """Let `load` fill what this rank holds of the state, and set the update count; a collective."""
    load(local_state(engine))
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
