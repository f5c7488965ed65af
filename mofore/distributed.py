"""Ranks: who am I, what do the others hold. Every function here is a collective where there are several."""

import os
import time
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, in a new tensor."""
    if world() == 1:
        return values.clone()
    values = values.clone()
    dist.all_reduce(values)
    return values / world()


def most(values: list[float], device: torch.device) -> list[float]:
    """The largest of each number over the ranks, in one exchange."""
    if world() == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def gather_objects(own: T) -> list[T]:
    """Small plain objects of all ranks, in rank order."""
    if world() == 1:
        return [own]
    parts: list = [None] * world()
    dist.all_gather_object(parts, own)
    return parts


def from_rank_0(own: T) -> T:
    """What rank 0 has, on every rank: a small plain object."""
    return gather_objects(own)[0]


def run_token() -> str:
    """A word that no other start of any run has, the same on every rank."""
    return from_rank_0(f"{os.getpid()}-{time.time_ns():x}")


def gather(tensor: Tensor) -> Tensor:
    """Tensors [B, ...] of all ranks, in rank order, as one [world * B, ...]; gradients flow back to their rank."""
    if world() == 1 or tensor.numel() == 0:
        return tensor
    return _Gather.apply(tensor)


class _Gather(torch.autograd.Function):
    """All-gather forward; backward sums what every rank's loss says of this rank's rows."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:  # type: ignore[override]
        parts = [torch.empty_like(tensor) for _ in range(world())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        rows = len(gradient) // world()
        return gradient[rank() * rows : (rank() + 1) * rows]
