"""Memory of a rank: what it holds between two steps, by arithmetic, and the most during a step.

The state is fp32, sharded as in Rajbhandari et al. 2020 ("ZeRO", arXiv 1910.02054, section 5). What
DeepSpeed adds to it (copies of weights, buckets of gradients) was read off its version 0.19;
`python -m benchmarks.plan` measures it.
"""

from typing import NamedTuple

from mofore.config import PretrainConfig
from mofore.models.objective import build_meta_pretraining
from mofore.optim import parameter_groups
from mofore.parallel.deepspeed_options import merge_options, offloads_optimizer
from mofore.parallel.engine import deepspeed_settings
from mofore.precision import Precision
from mofore.step_memory import GradientUse, step_memory

FP32 = 4  # bytes
LIVE_ELEMENTS = 10**9  # DeepSpeed's default of stage3_max_live_parameters
GROUP_ELEMENTS = 10**9  # and of sub_group_size: weights that stage 3 updates at once


class Parameters(NamedTuple):
    """Numbers of the model's parameters."""

    trained: int  # of student, forecaster and projection head
    fixed: int  # of the teacher, and others that no gradient changes
    largest_group: int  # of `trained`, those that the optimizer updates at once


class State(NamedTuple):
    """Bytes of what a rank must keep from one step to the next."""

    weights: int  # that gradients change; at stage 3 the rank's shard
    teacher: int
    moments: int
    master: int  # DeepSpeed's second copy of the weights that this rank updates

    @property
    def total(self) -> int:
        return sum(self)


class Exchange(NamedTuple):
    """Bytes of what the ranks exchange in a step."""

    gradients: int  # the most that the rank keeps
    buckets: int  # copies of gradients, to be averaged
    gathered: int  # at stage 3: whole weights while they are used


class RankMemory(NamedTuple):
    """Bytes on the device of one rank."""

    state: State
    exchange: Exchange
    batch: int  # clips of a step, and keys of the global batch
    targets: int  # of a step
    activations: int  # kept for the backward pass of a micro-batch
    held: int  # between two steps: the state, the batch, and what DeepSpeed keeps
    peak: int  # the most at any time of a step


def count_parameters(config: PretrainConfig) -> Parameters:
    """Counted on the model, which is built without data."""
    model = build_meta_pretraining(config.model())
    groups = parameter_groups(model, config.optimizer.weight_decay)
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    total = sum(parameter.numel() for parameter in model.parameters())
    return Parameters(sum(sizes), total - sum(sizes), max(sizes))


def checkpoint_bytes(parameters: Parameters) -> int:
    """Weights, both moments and the teacher in fp32, without the headers of the files."""
    return FP32 * (3 * parameters.trained + parameters.fixed)


def rank_state(config: PretrainConfig, ranks: int, parameters: Parameters) -> State:
    """The state on the device of each of `ranks` ranks."""
    stage, offloaded = config.engine.zero_stage, offloads_optimizer(config.engine.deepspeed)
    weight_shards = ranks if stage == 3 else 1
    updated = 0 if offloaded else FP32 * parameters.trained // (ranks if stage else 1)
    return State(
        weights=FP32 * parameters.trained // weight_shards,
        teacher=FP32 * parameters.fixed // weight_shards,
        moments=2 * updated,
        master=updated if stage else 0,
    )


def rank_memory(
    config: PretrainConfig, ranks: int, precision: Precision, parameters: Parameters | None = None
) -> RankMemory:
    """The memory of each of `ranks` ranks. precision: a resolved one.

    parameters: those of the model, if they are counted already. Raises UserError if the global
    batch does not divide into the micro-batches.
    """
    parameters = parameters or count_parameters(config)
    stage = config.engine.zero_stage
    videos, accumulation = config.split_batch(ranks)
    state = rank_state(config, ranks, parameters)
    exchange, bucket = _exchange(config, ranks, parameters, precision)
    step = step_memory(config, videos, precision, _gradient_use(stage, ranks, accumulation, bucket))
    batch, targets = step.batch * accumulation + step.keys, step.targets * accumulation
    held = state.total + batch
    if stage == 3:  # DeepSpeed keeps gradients and a bucket between two steps too
        held += exchange.gradients + bucket
    teacher = step.teacher + targets - step.targets + exchange.gathered
    student = targets + step.peak + exchange.gathered
    if stage in (1, 2):
        student += exchange.buckets
    if stage == 2 and accumulation > 1:
        student += exchange.gradients
    if stage == 3:
        student += exchange.buckets - bucket
    update = targets + _update_bytes(config, ranks, parameters, exchange)
    peak = held + max(teacher, student, update)
    return RankMemory(state, exchange, batch, targets, step.saved, held, peak)


def _gradient_use(stage: int, ranks: int, accumulation: int, bucket: int) -> GradientUse:
    """bucket: bytes."""
    if stage == 0:
        return GradientUse(accumulated=accumulation > 1, copied=ranks > 1)
    if stage == 3:
        return GradientUse(bucket=bucket // FP32, weight_copies=False)
    accumulated = stage == 1 and accumulation > 1
    return GradientUse(accumulated, bucket=bucket // FP32, share=1 / ranks)


def _exchange(
    config: PretrainConfig, ranks: int, parameters: Parameters, precision: Precision
) -> tuple[Exchange, int]:
    """What the ranks exchange, and the bytes of a bucket of DeepSpeed's."""
    engine, trained = config.engine, FP32 * parameters.trained
    settings = merge_options(deepspeed_settings(engine, precision, True), engine.deepspeed)
    zero = settings["zero_optimization"]
    bucket = FP32 * int(zero["reduce_bucket_size"])
    _, accumulation = config.split_batch(ranks)
    several = ranks > 1
    if engine.zero_stage == 0:
        return Exchange(trained, trained if several else 0, 0), bucket
    if engine.zero_stage < 3:
        whole = engine.zero_stage == 1 and accumulation > 1
        gradients = trained if whole else trained // ranks
        return Exchange(gradients, bucket * (2 if zero["overlap_comm"] else 1), 0), bucket
    live = int(zero.get("stage3_max_live_parameters", LIVE_ELEMENTS))
    gathered = FP32 * min(parameters.trained + parameters.fixed, live) if several else 0
    joined = min(trained, bucket) if several else 0  # what is reduced, beside the bucket
    return Exchange(trained // ranks, bucket + joined, gathered), bucket


def _update_bytes(
    config: PretrainConfig, ranks: int, parameters: Parameters, exchange: Exchange
) -> int:
    """The gradients during the update, and a second copy that DeepSpeed makes of a group."""
    if config.engine.zero_stage == 0:
        return exchange.gradients
    if config.engine.zero_stage < 3:
        return FP32 * (parameters.trained + parameters.largest_group) // ranks
    return FP32 * min(parameters.trained // ranks, GROUP_ELEMENTS)
