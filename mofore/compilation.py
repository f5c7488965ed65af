"""torch.compile of the transformer blocks, one by one and in place.

Blocks of one shape share their compiled code, so compiling takes as long as that of one block. The
names of the weights do not change.
"""

import logging
from collections.abc import Sequence

import torch
from timm.models.vision_transformer import Block
from torch import nn

from mofore.models.objective import Pretraining
from mofore.parallel.collectives import all_reduce_max
from mofore.parallel.engine_config import Compile, EngineConfig
from mofore.precision import Precision, autocast
from mofore.types import Batch

logger = logging.getLogger(__name__)
# Variants of a block: student, teacher and forecaster, with the tokens of each, and the monitor's
# batches. PyTorch would give up after eight.
MAX_VARIANTS = 64


def should_compile(config: EngineConfig, device: torch.device) -> bool:
    """Whether this run compiles its blocks. DeepSpeed's hooks of stage 3 break compiled code."""
    if config.compile is Compile.auto:
        return device.type == "cuda" and config.zero_stage < 3
    return config.compile is Compile.always


def compile_blocks(model: Pretraining, batch: Batch, precision: Precision) -> bool:
    """Compile every block in place, then make one forward and backward pass to try them.

    batch: one micro-batch in the run's shapes. precision: a resolved one. Returns whether it
    worked. If it fails on any rank, all ranks log the reason or the fact, and run eagerly.
    """
    torch._dynamo.config.recompile_limit = MAX_VARIANTS
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile(dynamic=False)
    fault = None
    try:
        with autocast(precision, batch.gaps.device):
            targets = model(batch)
            loss = model(batch, targets, targets.keys).total
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each backend has its own errors
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        fault = f"{type(error).__name__}: {' '.join(lines[:2])}"  # the second names the cause
    model.zero_grad(set_to_none=True)
    (failed,) = all_reduce_max([fault is not None], batch.gaps.device)
    if not failed:
        return True
    logger.warning(
        "engine.compile: the blocks do not compile (%s). They run eagerly, which is slower. "
        "engine.compile=never silences this.",
        fault or "on another rank",
    )
    uncompile(blocks)
    return False


def uncompile(blocks: Sequence[nn.Module]) -> None:
    """Undo Module.compile, for which PyTorch has no public way."""
    for block in blocks:
        block._compiled_call_impl = None  # type: ignore[assignment]


def compiled_graphs() -> int:
    """Graphs that this process has compiled; more than after the start are recompilations."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
