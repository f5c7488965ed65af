"""The teacher: an exponential moving average of the student, in fp32, on whatever shard of it a rank holds."""

from dataclasses import dataclass

import torch
from torch import nn

from mofore.errors import UserError


@dataclass
class TeacherConfig:
    """Momentum of the average, from `momentum` at the first step to `final_momentum` at the last."""

    momentum: float = 0.996
    final_momentum: float = 1.0

    @property
    def ends(self) -> tuple[float, float]:
        return self.momentum, self.final_momentum

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= self.final_momentum <= 1:
            raise UserError(
                f"teacher: need 0 <= momentum <= final_momentum <= 1, got {self.momentum} and {self.final_momentum}."
            )


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter.

    The update is elementwise, so it needs no communication: under ZeRO-3 a rank moves the shard that it
    holds (`ds_tensor`), otherwise the whole tensor. Student and teacher have equal shapes, hence equal
    shards.
    """
    ours, theirs = [], []
    for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):
        ours.append(getattr(mine, "ds_tensor", mine.data))
        theirs.append(getattr(other, "ds_tensor", other.data))
    assert all(a.shape == b.shape and a.dtype == torch.float32 for a, b in zip(ours, theirs, strict=True))
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)
