"""The teacher: an exponential moving average (EMA) of the student, in fp32, shard by shard."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mofore.errors import UserError
from mofore.settings import setting


@dataclass
class TeacherConfig:
    """The tokens that the teacher sees, and its EMA momentum: half a cosine over the run."""

    momentum: float = setting(0.996, "EMA momentum at the first step.")
    final_momentum: float = setting(1.0, "EMA momentum at the last step.")
    token_keep_ratio: float = setting(
        1.0, "Share of a clip's tokens that the teacher sees and the forecaster forecasts; 1: all."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= self.final_momentum <= 1:
            raise UserError(
                f"teacher: need 0 <= momentum <= final_momentum <= 1, got momentum={self.momentum} "
                f"and final_momentum={self.final_momentum}."
            )
        if not 0 < self.token_keep_ratio <= 1:
            raise UserError(
                f"teacher.token_keep_ratio={self.token_keep_ratio} must be above 0 and at most 1."
            )


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, weight: Tensor) -> None:
    """teacher <- teacher + weight * (student - teacher), for every parameter.

    weight: f32 [] on the parameters' device: 1 - momentum, or 0 if the step's update was skipped,
    which leaves the teacher's values as they are (a skipped update leaves the student finite; inf
    or nan times 0 would be nan). A tensor, so that the device decides and the host does not wait.
    One lerp per parameter: torch._foreach_lerp_ takes one number of the host for all of them.

    The update is elementwise and needs no communication: under ZeRO-3 each rank updates the shard
    that it holds (`ds_tensor`), otherwise the whole tensor. Student and teacher have equal shapes,
    hence equal shards.
    """
    assert weight.shape == (), "a scalar tensor"
    assert weight.dtype == torch.float32
    for parameter, other in zip(teacher.parameters(), student.parameters(), strict=True):
        average = getattr(parameter, "ds_tensor", parameter.data)
        value = getattr(other, "ds_tensor", other.data)
        assert average.shape == value.shape
        assert average.dtype == torch.float32
        average.lerp_(value, weight)
