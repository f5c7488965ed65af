"""The engine's configuration keys, in a module that does not import DeepSpeed."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from mofore.errors import UserError
from mofore.parallel.deepspeed_options import check_options
from mofore.precision import Precision
from mofore.settings import setting


class Compile(Enum):
    """Whether torch.compile compiles the transformer blocks."""

    auto = "auto"  # on a GPU at ZeRO stages 0 to 2
    always = "always"  # on a CPU too
    never = "never"


@dataclass
class EngineConfig:
    zero_stage: int = setting(0, "ZeRO stage: 0, 1, 2 or 3.")
    precision: Precision = setting(
        Precision.auto,
        "Products in bf16 (autocast), tf32 or fp32; auto: bf16 on a GPU that has it, fp32 on a "
        "CPU. Weights, moments and teacher are always fp32.",
    )
    compile: Compile = setting(
        Compile.auto, "Compile the transformer blocks; auto: on a GPU at ZeRO stages 0 to 2."
    )
    deterministic: bool = setting(
        False, "Deterministic GPU algorithms: a resume is then exact to the last bit, and slower."
    )
    deepspeed: dict[str, Any] = setting(
        {}, "DeepSpeed's own options, as engine.deepspeed.zero_optimization.reduce_bucket_size=1e8."
    )
    timeout: int = setting(600, "Seconds after which a silent or stuck rank ends the run.")
    check_ranks_every: int = setting(20, "Steps between two checks that the ranks agree.")
    peak_tflops: float | None = setting(
        None, "Peak TFLOP/s of the device for the metric mfu; null looks the GPU up by its name."
    )

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"engine.zero_stage={self.zero_stage}: give 0, 1, 2 or 3.")
        if min(self.timeout, self.check_ranks_every) < 1:
            raise UserError(
                f"engine.timeout={self.timeout} seconds and engine.check_ranks_every="
                f"{self.check_ranks_every} steps must be at least 1."
            )
        if self.compile is Compile.always and self.zero_stage == 3:
            raise UserError(
                "engine.compile=always: DeepSpeed's hooks of engine.zero_stage=3 break the "
                "compilation. Give engine.compile=auto or a stage from 0 to 2."
            )
        if self.peak_tflops is not None and self.peak_tflops <= 0:
            raise UserError(f"engine.peak_tflops={self.peak_tflops} must be above 0, or null.")
        check_options(self.deepspeed, self.zero_stage)
