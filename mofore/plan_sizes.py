"""What a size of backbone needs, for a table of several: `mofore plan --sweep`."""

import functools
from dataclasses import replace
from typing import NamedTuple

from mofore.config import PretrainConfig
from mofore.flops import VideoFlops, flops_per_video
from mofore.gpus import GPU
from mofore.memory import FP32, Parameters, count_parameters, rank_memory, rank_state
from mofore.plan import CHECKPOINTING, change_config, memory_limit, plan_precision

SMALLEST = 8  # videos of a micro-batch that must fit, checkpointed, for a stage to be recommended
STAGES = (0, 1, 3)  # whose memory differs; 2 is as 1 with one micro-batch a step


class SizePlan(NamedTuple):
    parameters: Parameters
    flops: VideoFlops
    held: tuple[int, ...]  # bytes a rank of state and gradients at STAGES
    stage: int | None  # recommended; None: none fits
    micro_batches: tuple[int, int]  # the largest at that stage, without and with checkpointing
    samples_per_second: float  # of one GPU, without checkpointing


def plan_size(config: PretrainConfig, ranks: int, gpu: GPU, mfu: float) -> SizePlan:
    """Of this configuration's backbone; its ZeRO stage, batch and checkpointing do not count."""
    precision, parameters = plan_precision(config, gpu), count_parameters(config)
    limit = memory_limit(gpu)
    config = change_config(config, {"backbone.grad_checkpoint_every": 0})

    @functools.cache
    def largest(stage: int, checkpointing: bool) -> int:
        """Videos of the largest micro-batch that fits at a stage; 0: none."""
        changes = {"engine.zero_stage": stage} | (CHECKPOINTING if checkpointing else {})
        changed = change_config(config, changes)
        if rank_state(changed, ranks, parameters).total > limit:
            return 0

        def peak(videos: int) -> int:
            sized = replace(changed, global_batch=ranks * videos, micro_batch=None)
            return rank_memory(sized, ranks, precision, parameters).peak

        # A straight line, but for what dominates at small sizes.
        first, second = peak(SMALLEST), peak(2 * SMALLEST)
        videos = int(SMALLEST + (limit - first) * SMALLEST / (second - first))
        while 1 < videos < SMALLEST and peak(videos) > limit:
            videos -= 1
        return max(0, videos)

    stages = (1, 2, 3) if ranks > 1 else (0,)
    stage = next((each for each in stages if largest(each, True) >= SMALLEST), None)
    micro_batches = (0, 0)
    if stage is not None:
        micro_batches = (largest(stage, False), largest(stage, True))
    held = tuple(
        rank_state(change_config(config, {"engine.zero_stage": each}), ranks, parameters).total
        + FP32 * parameters.trained // (ranks if each else 1)
        for each in STAGES
    )
    flops = flops_per_video(config)
    rate = mfu * gpu.peak_tflops(precision) * 1e12 / flops.total
    return SizePlan(parameters, flops, held, stage, micro_batches, rate)
