"""Which parameters are decayed, and the optimizer that DeepSpeed wraps."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn

from mofore.errors import UserError
from mofore.settings import setting


class OptimizerKind(Enum):
    adamw = "adamw"
    adam = "adam"  # as published (arXiv 2606.14765)


@dataclass
class OptimizerConfig:
    """Adam or AdamW; linear warm-up, then half a cosine from `lr` to `final_lr`."""

    kind: OptimizerKind = setting(OptimizerKind.adamw, "Optimizer; adam needs weight_decay=0.")
    lr: float = setting(1e-3, "Peak learning rate, after the warm-up.")
    final_lr: float = setting(1e-6, "Learning rate at the last step.")
    warmup_steps: int = setting(500, "Steps of linear warm-up.")
    weight_decay: float = setting(0.05, "Decoupled weight decay of the weights of Linear layers.")
    betas: list[float] = setting([0.9, 0.95], "Decay rates of Adam's first and second moment.")
    clip_grad: float = setting(1.0, "Largest L2 norm of the gradient; 0: no clipping.")

    def __post_init__(self) -> None:
        not_negative = (self.final_lr, self.warmup_steps, self.weight_decay, self.clip_grad)
        if self.lr <= 0 or min(not_negative) < 0:
            raise UserError(
                f"optimizer: lr={self.lr} must be above 0, and final_lr={self.final_lr}, "
                f"warmup_steps={self.warmup_steps}, weight_decay={self.weight_decay} and "
                f"clip_grad={self.clip_grad} at least 0."
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas={self.betas}: give two numbers, 0 <= beta < 1.")
        if self.kind is OptimizerKind.adam and self.weight_decay:
            raise UserError(
                "optimizer.weight_decay must be 0 for optimizer.kind=adam; adamw supports decay."
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: weights of Linear layers with decay, the rest without."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = {
        f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    return [
        {"params": [p for name, p in trainable if name in matrices], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if name not in matrices], "weight_decay": 0.0},
    ]


def build_optimizer(groups: Iterable[dict], config: OptimizerConfig) -> torch.optim.Optimizer:
    """torch's fused optimizer: as fast on CPUs as DeepSpeed's own Adam, and needs no compiler."""
    kind = torch.optim.Adam if config.kind is OptimizerKind.adam else torch.optim.AdamW
    return kind(list(groups), lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True)
