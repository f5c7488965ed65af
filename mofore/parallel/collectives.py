"""Rank, world size and collectives. With one rank a collective returns its input."""

import os
import time
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def get_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks, in a new tensor."""
    values = values.clone()
    if get_world_size() == 1:
        return values
    dist.all_reduce(values)
    return values / get_world_size()


def all_reduce_max(values: list[float], device: torch.device) -> list[float]:
    """The maximum of each number over the ranks, in one collective."""
    if get_world_size() == 1:
        return values
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.tolist()


def all_gather(tensor: Tensor) -> Tensor:
    """Tensors [B, ...] of all ranks in rank order: [world size * B, ...], without gradient."""
    if get_world_size() == 1 or tensor.numel() == 0:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def all_gather_objects(value: T) -> list[T]:
    """Small plain objects of all ranks, in rank order."""
    if get_world_size() == 1:
        return [value]
    parts: list = [None] * get_world_size()
    dist.all_gather_object(parts, value)
    return parts


def gather_objects(value: T) -> list[T]:
    """Plain objects of all ranks in rank order on rank 0; an empty list on the others."""
    if get_world_size() == 1:
        return [value]
    parts: list | None = [None] * get_world_size() if get_rank() == 0 else None
    dist.gather_object(value, parts, dst=0)
    return parts or []


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank: a plain object. The value of other ranks is not used."""
    if get_world_size() == 1:
        return value
    parts = [value]
    dist.broadcast_object_list(parts, src=0)
    return parts[0]


def broadcast(tensor: Tensor, source: int) -> None:
    """Overwrite a tensor with that of rank `source`."""
    if get_world_size() > 1:
        dist.broadcast(tensor, source)


def unique_token() -> str:
    """A string that no other start of any run has, the same on every rank."""
    return broadcast_object(f"{os.getpid()}-{time.time_ns():x}")
