"""Ranks that exist one at a time, and what each of them holds by DeepSpeed's arithmetic.

So one process can do what each of 1,024 ranks does with a checkpoint, with the library's own code.
What the ranks send each other is passed on by hand.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch.distributed as dist

from mofore.config import PretrainConfig
from mofore.models.objective import build_meta_pretraining
from mofore.optim import parameter_groups
from mofore.parallel.state import MOMENTS
from mofore.types import Shard

Slices = dict[str, tuple[int, int]]  # start and stop, by parameter

STAGE_1_ALIGNMENT = 2  # numbers; DeepSpeed pads a group to this times the number of ranks


@contextlib.contextmanager
def as_rank(rank: int, ranks: int) -> Iterator[None]:
    """Inside, this process takes itself for one of `ranks`. It cannot communicate."""
    with mock.patch.multiple(
        dist,
        is_initialized=lambda: True,
        get_rank=lambda: rank,
        get_world_size=lambda: ranks,
    ):
        yield


class Parameter(NamedTuple):
    name: str
    shape: list[int]
    group: int | None  # of the optimizer; None if it is not trained

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def model_parameters(config: PretrainConfig) -> list[Parameter]:
    """The parameters of a configuration's model, which takes no memory here."""
    model = build_meta_pretraining(config.model())
    groups = parameter_groups(model, config.optimizer.weight_decay)
    group_of = {id(p): i for i, group in enumerate(groups) for p in group["params"]}
    return [
        Parameter(name, list(p.shape), group_of.get(id(p))) for name, p in model.named_parameters()
    ]


def tensor_shapes(parameters: list[Parameter]) -> dict[str, list[int]]:
    """As `state_shapes` of the engine."""
    return {
        f"{kind}/{parameter.name}": parameter.shape
        for parameter in parameters
        for kind in ("weights", *(MOMENTS if parameter.group is not None else ()))
    }


def rank_state(
    parameters: list[Parameter],
    stage: int,
    rank: int,
    ranks: int,
    values: Callable[[str, int, int], Any],
) -> Iterator[Shard]:
    """What `local_state` of the engine yields on a rank.

    values: (name, start, stop) -> the elements of a flattened tensor, f32 [stop - start]; a range
    where only their number counts.
    """
    whole = {parameter.name: (0, parameter.size) for parameter in parameters}
    weights = moments = whole
    if stage in (1, 2):
        moments = _stage_1_slices(parameters, rank, ranks)
    elif stage == 3:
        weights = moments = _stage_3_slices(parameters, rank, ranks)
    for name, _, group in parameters:
        if name in weights:
            slice_ = weights[name]
            key = f"weights/{name}"
            yield Shard(key, slice_[0], values(key, *slice_), stage < 3)
        for kind in MOMENTS if group is not None and name in moments else ():
            key, slice_ = f"{kind}/{name}", moments[name]
            yield Shard(key, slice_[0], values(key, *slice_), stage == 0)


def _stage_3_slices(parameters: list[Parameter], rank: int, ranks: int) -> Slices:
    """DeepSpeed pads each parameter and gives each rank an equal part."""
    slices = {}
    for parameter in parameters:
        length = math.ceil(parameter.size / ranks)
        start, stop = (min(parameter.size, each * length) for each in (rank, rank + 1))
        if start < stop:
            slices[parameter.name] = start, stop
    return slices


def _stage_1_slices(parameters: list[Parameter], rank: int, ranks: int) -> Slices:
    """DeepSpeed concatenates the trained parameters of a group, pads, and divides the whole."""
    slices = {}
    for group in {p.group for p in parameters} - {None}:
        members = [parameter for parameter in parameters if parameter.group == group]
        unit = STAGE_1_ALIGNMENT * ranks
        part = math.ceil(sum(p.size for p in members) / unit) * unit // ranks
        at, low, high = 0, rank * part, (rank + 1) * part
        for parameter in members:
            start, stop = max(0, low - at), min(parameter.size, high - at)
            if start < stop:
                slices[parameter.name] = start, stop
            at += parameter.size
    return slices
