"""Which parameters are decayed, and the optimizer that DeepSpeed wraps."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import nn

from mofore.errors import UserError


class OptimizerKind(Enum):
    adamw = "adamw"
    adam = "adam"  # as published; weight decay must be 0


@dataclass
class OptimizerConfig:
    kind: OptimizerKind = OptimizerKind.adamw
    lr: float = 1e-3
    final_lr: float = 1e-6
    warmup: int = 500  # steps
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    clip: float = 1.0  # largest norm of the gradient; 0 leaves it as it is

    def __post_init__(self) -> None:
        if self.lr <= 0 or min(self.final_lr, self.warmup, self.weight_decay, self.clip) < 0:
            raise UserError(f"optimizer: lr must be above 0 and nothing below it, got {self}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: give two numbers, 0 <= beta < 1.")
        if self.kind is OptimizerKind.adam and self.weight_decay:
            raise UserError(
                "optimizer.weight_decay must be 0 for optimizer.kind=adam: choose adamw to decay."
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices are decayed; norms, biases, positions and lone tokens are not. Frozen ones are left out."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return [
        {"params": [p for name, p in trained if name in matrices], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if name not in matrices], "weight_decay": 0.0},
    ]


def build_optimizer(groups: Iterable[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    """fused: one pass over the weights, as fast as DeepSpeed's own CPU Adam and without a compiler."""
    kind = torch.optim.Adam if config.kind is OptimizerKind.adam else torch.optim.AdamW
    return kind(list(groups), lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True)
