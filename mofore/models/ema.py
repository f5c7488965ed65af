"""The teacher: an exponential moving average (EMA) of the student, in fp32, shard by shard."""

from dataclasses import dataclass

import torch
from torch import nn

from mofore.errors import UserError
from mofore.settings import setting


@dataclass
class TeacherConfig:
    """EMA momentum of the teacher, on half a cosine from the first step to the last."""

    momentum: float = setting(0.996, "EMA momentum at the first step.")
    final_momentum: float = setting(1.0, "EMA momentum at the last step.")

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= self.final_momentum <= 1:
            raise UserError(
                f"teacher: need 0 <= momentum <= final_momentum <= 1, got momentum={self.momentum} "
                f"and final_momentum={self.final_momentum}."
            )


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter.

    The update is elementwise and needs no communication: under ZeRO-3 each rank updates the shard
    that it holds (`ds_tensor`), otherwise the whole tensor. Student and teacher have equal shapes,
    hence equal shards.
    """
    averages, values = [], []
    for average, value in zip(teacher.parameters(), student.parameters(), strict=True):
        averages.append(getattr(average, "ds_tensor", average.data))
        values.append(getattr(value, "ds_tensor", value.data))
    assert all(
        a.shape == v.shape and a.dtype == torch.float32
        for a, v in zip(averages, values, strict=True)
    )
    torch._foreach_lerp_(averages, values, 1.0 - momentum)
