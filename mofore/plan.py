"""What a run needs before it runs: memory, time and cost; and what fits where it does not.

Nothing is measured here: memory follows from the model (mofore/memory.py), time from its FLOPs and
an assumed utilisation of the GPU.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from mofore.config import PretrainConfig
from mofore.errors import UserError
from mofore.flops import VideoFlops, flops_per_video
from mofore.gpus import GPU
from mofore.memory import Parameters, RankMemory, count_parameters, rank_memory, rank_state
from mofore.models.backbone import Attention
from mofore.precision import Precision

GIB = 2**30
# Share of a GPU's memory that tensors may take. The rest is for CUDA, NCCL and gaps between
# tensors.
USABLE = 0.92
TOKEN_RATIOS = (0.5, 0.25, 0.1)  # of data.token_keep_ratio, that are tried
CHECKPOINTING: dict[str, Any] = {"backbone.grad_checkpoint_every": 1}


class Plan(NamedTuple):
    """What a configuration needs on `ranks` GPUs of one kind."""

    config: PretrainConfig
    ranks: int
    gpu: GPU
    precision: Precision
    mfu: float
    parameters: Parameters
    memory: RankMemory
    checkpointed: int  # bytes of activations kept for backward if every block is checkpointed
    flops: VideoFlops

    @property
    def recomputed(self) -> float:
        """FLOPs per video that gradient checkpointing adds: every n-th block once more."""
        every = self.config.backbone.grad_checkpoint_every
        return (self.flops.student + self.flops.forecaster) / 3 / every if every else 0.0

    @property
    def step_seconds(self) -> float:
        rate = self.mfu * self.gpu.peak_tflops(self.precision) * 1e12
        videos = self.config.global_batch / self.ranks
        return videos * (self.flops.total + self.recomputed) / rate

    @property
    def samples_per_second(self) -> float:
        """Of all ranks."""
        return self.config.global_batch / self.step_seconds

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.config.steps * self.step_seconds * self.ranks / 3600


def memory_limit(gpu: GPU) -> float:
    """Bytes that tensors may take."""
    return USABLE * GIB * gpu.memory_gib


def make_plan(config: PretrainConfig, ranks: int, gpu: GPU, mfu: float) -> Plan:
    """The plan of a run. Raises UserError if the batch does not divide, or the GPU has no bf16."""
    precision = plan_precision(config, gpu)
    parameters = count_parameters(config)
    memory = rank_memory(config, ranks, precision, parameters)
    checkpointed = rank_memory(change_config(config, CHECKPOINTING), ranks, precision, parameters)
    return Plan(
        config,
        ranks,
        gpu,
        precision,
        mfu,
        parameters,
        memory,
        checkpointed.activations,
        flops_per_video(config),
    )


def plan_precision(config: PretrainConfig, gpu: GPU) -> Precision:
    """The resolved precision on this GPU. Raises UserError for bf16 on a GPU without it."""
    precision = config.engine.precision
    if precision is Precision.bf16 and gpu.bf16_tflops is None:
        raise UserError(
            f"engine.precision=bf16: {gpu.name} has no bf16 units. Give engine.precision=auto, "
            "tf32 or fp32."
        )
    return gpu.precision if precision is Precision.auto else precision


Changes = dict[str, Any]  # other values of some keys, "group.key" or "key"


class Remedy(NamedTuple):
    """Keys to change, with which a rank needs `peak` bytes."""

    changes: Changes
    peak: int

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.changes.items())


def suggest(config: PretrainConfig, world_size: int, gpu_memory_bytes: int) -> str:
    """Advice for a run that has run out of memory: what the plan says, and what would fit.

    It takes seconds; with a billion parameters half a minute. engine.precision=auto counts as bf16.
    """
    precision = config.engine.precision
    precision = Precision.bf16 if precision is Precision.auto else precision
    peak, limit = rank_memory(config, world_size, precision).peak, USABLE * gpu_memory_bytes
    text = f"By the plan a rank needs {gib(peak)}; {gib(limit)} can be used."
    if peak <= limit:
        text += " Another process may hold memory of this GPU (see nvidia-smi)."
        limit = 0.8 * peak  # less than what has just failed
    remedies = find_remedies(config, world_size, precision, limit)
    return f"{text} {describe_remedies(remedies, world_size)}"


def explain_misfit(
    config: PretrainConfig, ranks: int, gpu: GPU, memory: RankMemory | None = None
) -> str | None:
    """Two sentences if a rank needs more memory than the GPU has: how much, and what would fit.

    memory: that of the configuration, if it is known already. UserError as of `make_plan`.
    """
    precision, limit = plan_precision(config, gpu), memory_limit(gpu)
    peak = (memory or rank_memory(config, ranks, precision)).peak
    if peak <= limit:
        return None
    remedies = find_remedies(config, ranks, precision, limit)
    return (
        f"it does not fit: a rank needs {gib(peak)}; tensors may take {gib(limit)} of {gpu.name}. "
        f"{describe_remedies(remedies, ranks)}"
    )


def describe_remedies(remedies: list[Remedy], ranks: int) -> str:
    """One sentence of what to change."""
    if remedies:
        choices = (f"{remedy} ({gib(remedy.peak)})" for remedy in remedies)
        return f"What fits: {', or '.join(choices)}."
    return (
        f"No ZeRO stage, micro-batch or checkpointing makes it fit on {ranks} rank(s): take more "
        "ranks, larger GPUs or a smaller backbone."
    )


def find_remedies(
    config: PretrainConfig, ranks: int, precision: Precision, limit: float
) -> list[Remedy]:
    """Single changes with which a rank needs at most `limit` bytes, else one of several keys.

    A ZeRO stage and a smaller micro-batch change no result, checkpointing costs time, fewer tokens
    change what is learned.
    """
    search = _Search(config, ranks, precision, limit)
    stages = range(config.engine.zero_stage + 1, 4) if ranks > 1 else range(0)
    remedies = search.first({"engine.zero_stage": stage} for stage in stages)
    remedies += search.micro_batch({})
    if config.backbone.grad_checkpoint_every != 1:
        remedies += search.first([CHECKPOINTING])
    if len(remedies) < 2 and config.backbone.attention is Attention.joint:
        ratios = (ratio for ratio in TOKEN_RATIOS if ratio < config.data.token_keep_ratio)
        remedies += search.first({"data.token_keep_ratio": ratio} for ratio in ratios)
    for stage in (config.engine.zero_stage, *stages):
        remedies = remedies or search.micro_batch({"engine.zero_stage": stage} | CHECKPOINTING)
    return remedies


class _Search:
    """Tries changes of one configuration. Each try costs a step of the model without data."""

    def __init__(
        self, config: PretrainConfig, ranks: int, precision: Precision, limit: float
    ) -> None:
        self.config, self.ranks, self.precision, self.limit = config, ranks, precision, limit
        self.parameters = count_parameters(config)  # none of the changes changes them

    def first(self, candidates: Iterable[Changes]) -> list[Remedy]:
        """The first of them that fits, if any."""
        for changes in candidates:
            remedy = self._try(changes)
            if remedy.peak <= self.limit:
                return [remedy]
        return []

    def micro_batch(self, changes: Changes) -> list[Remedy]:
        """With these changes, the largest micro-batch below the present one that fits, if any."""
        present, _ = self.config.split_batch(self.ranks)
        share = self.config.global_batch // self.ranks
        sizes = [size for size in range(1, present) if share % size == 0]
        tried = [self._try(changes | {"micro_batch": size}) for size in sizes[:1] + sizes[1:][-1:]]
        if not tried or tried[0].peak > self.limit:
            return []
        # Memory grows with the number of videos by a straight line, or a little more.
        slope = (tried[-1].peak - tried[0].peak) / max(1, sizes[-1] - sizes[0])
        fitting = [s for s in sizes if tried[0].peak + slope * (s - sizes[0]) <= self.limit]
        return self.first(changes | {"micro_batch": size} for size in reversed(fitting))

    def _try(self, changes: Changes) -> Remedy:
        config = change_config(self.config, changes)
        peak = rank_state(config, self.ranks, self.parameters).total
        if peak <= self.limit:
            peak = rank_memory(config, self.ranks, self.precision, self.parameters).peak
        return Remedy(changes, peak)


def change_config(config: PretrainConfig, changes: Changes) -> PretrainConfig:
    """The configuration with other values of some keys."""
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        changed = {name: value}
        if group:
            changed = {group: replace(getattr(config, group), **changed)}
        config = replace(config, **changed)
    return config


def gib(number: float) -> str:
    return f"{number / GIB:.1f} GiB"
