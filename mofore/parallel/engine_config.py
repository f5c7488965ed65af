"""The engine's configuration keys, in a module that does not import DeepSpeed."""

from dataclasses import dataclass
from enum import Enum

from mofore.errors import UserError
from mofore.settings import setting


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"  # torch.autocast: weights, moments and teacher stay fp32


@dataclass
class EngineConfig:
    zero_stage: int = setting(0, "ZeRO stage: 0, 1, 2 or 3.")
    precision: Precision = setting(
        Precision.fp32, "bf16 runs under autocast; weights, moments and teacher stay fp32."
    )
    timeout: int = setting(600, "Seconds after which a silent or stuck rank ends the run.")
    check_ranks_every: int = setting(20, "Steps between two checks that the ranks agree.")

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"engine.zero_stage={self.zero_stage}: give 0, 1, 2 or 3.")
        if min(self.timeout, self.check_ranks_every) < 1:
            raise UserError(
                f"engine.timeout={self.timeout} seconds and engine.check_ranks_every="
                f"{self.check_ranks_every} steps must be at least 1."
            )
