"""The tables of `mofore plan`: one run, or the backbones side by side."""

import argparse
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mofore.config import PretrainConfig
from mofore.gpus import GPU
from mofore.memory import checkpoint_bytes
from mofore.plan import GIB, USABLE, Plan, gib, memory_limit
from mofore.plan_sizes import SMALLEST, plan_size

EXACT, MODELLED, ASSUMED = "exact", "modelled", "assumed"
LEGEND = (
    "exact: arithmetic on shapes. modelled: a step of the model on tensors without data, with "
    "flash attention. assumed: an option of this command, or follows from one."
)
SWEEP_LEGEND = (
    "TFLOP: of a video and step. ZeRO: GiB of a rank for weights, teacher, moments and gradients "
    f"(exact). stage: the lowest, of 1 to 3 on several ranks, that fits {SMALLEST} videos with "
    "checkpointing. videos: the largest micro-batch at that stage; checkpointed: with "
    "checkpointing (modelled). samples/s: of a GPU, without checkpointing (assumed). checkpoint: "
    "GB (exact)."
)
STYLE: dict[str, Any] = {
    "title_justify": "left",
    "title_style": "bold",
    "caption_justify": "left",
    "caption_style": "dim",
    "show_edge": False,
    "pad_edge": False,
    "box": SIMPLE_HEAD,
}

SWEEP_COLUMNS = (
    "M\ntrained",
    "\nTFLOP",
    "ZeRO\n0",
    "\n1,2",
    "\n3",
    "\nstage",
    "\nvideos",
    "check-\npointed",
    "sam-\nples/s",
    "check-\npoint",
)


class Row(NamedTuple):
    name: str
    value: str
    kind: str  # EXACT, MODELLED or ASSUMED
    note: str = ""


def plan_table(plan: Plan, arguments: argparse.Namespace) -> Table:
    """The rows of a plan in sections."""
    config = plan.config
    table = Table(
        title=f"{config.backbone.name}, clips of {config.data.frames} x {config.data.size} x "
        f"{config.data.size}, global batch {config.global_batch}, {plan.ranks} x {plan.gpu.name}, "
        f"{plan.precision.name}, ZeRO stage {config.engine.zero_stage}",
        caption=LEGEND,
        show_header=False,
        **STYLE,
    )
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    table.add_column(style="dim")
    sections = (
        model_rows(plan),
        memory_rows(plan),
        time_rows(plan, arguments),
        data_rows(plan, arguments),
    )
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    return table


def model_rows(plan: Plan) -> Iterator[Row]:
    flops, total = plan.flops, plan.flops.total
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in flops._asdict().items())
    trained, fixed = plan.parameters.trained, plan.parameters.fixed
    yield Row("trained parameters", f"{trained / 1e6:.1f} M", EXACT)
    yield Row("teacher's parameters", f"{fixed / 1e6:.1f} M", EXACT)
    yield Row("FLOPs of a video and step", f"{total / 1e12:.3g} T", EXACT, shares)


def memory_rows(plan: Plan) -> Iterator[Row]:
    """Of one rank."""
    memory, config = plan.memory, plan.config
    state, exchange = memory.state, memory.exchange
    videos, accumulation = config.split_batch(plan.ranks)
    every = config.backbone.grad_checkpoint_every
    checkpointing = f"every {every}. block checkpointed" if every else "no checkpointing"
    yield Row("weights", gib(state.weights), EXACT, "fp32, each rank")
    yield Row("teacher", gib(state.teacher), EXACT)
    yield Row("Adam's moments", gib(state.moments), EXACT, "" if state.moments else "on the host")
    if state.master:
        yield Row("second copy of weights", gib(state.master), EXACT, "DeepSpeed's")
    yield Row("gradients", gib(exchange.gradients), EXACT)
    yield Row("buckets of gradients", gib(exchange.buckets), EXACT)
    if exchange.gathered:
        yield Row("gathered weights", gib(exchange.gathered), EXACT, "at most")
    yield Row("clips, keys and targets", gib(memory.batch + memory.targets), EXACT)
    note = f"{accumulation} x {videos} videos, {checkpointing}"
    yield Row("activations for backward", gib(memory.activations), MODELLED, note)
    if not every:
        yield Row("  with checkpointing", gib(plan.checkpointed), MODELLED, "of every block")
    note = f"{USABLE:.0%} of the GPU is {gib(memory_limit(plan.gpu))}"
    yield Row("peak of a step", gib(memory.peak), MODELLED, note)


def time_rows(plan: Plan, arguments: argparse.Namespace) -> Iterator[Row]:
    peak = plan.gpu.peak_tflops(plan.precision)
    note = f"{plan.mfu:.0%} of {peak:g} TFLOP/s"
    if plan.recomputed:
        note += f", and {plan.recomputed / plan.flops.total:.0%} more FLOPs for checkpointing"
    yield Row("step", f"{plan.step_seconds:.3g} s", ASSUMED, note)
    yield Row("samples", f"{plan.samples_per_second:.4g} /s", ASSUMED)
    hours = plan.gpu_hours
    note = f"{plan.config.steps} steps, {hours / plan.ranks:.3g} hours"
    yield Row("GPU hours of the run", f"{hours:.4g}", ASSUMED, note)
    if arguments.price:
        yield Row("cost of the run", f"{hours * arguments.price:,.0f}", ASSUMED)


def data_rows(plan: Plan, arguments: argparse.Namespace) -> Iterator[Row]:
    rate = plan.samples_per_second
    cores = rate * arguments.decode_ms / 1e3
    note = f"{arguments.decode_ms:g} ms of a core per sample, {cores / plan.ranks:.1f} cores a rank"
    yield Row("cores that decode", f"{cores:.1f}", ASSUMED, note)
    note = f"{arguments.video_mb:g} MB per sample"
    yield Row("storage is read at", f"{rate * arguments.video_mb:.4g} MB/s", ASSUMED, note)
    size = checkpoint_bytes(plan.parameters)
    note = f"{plan.config.checkpoint.keep_last} are kept, and one is being written"
    yield Row("checkpoint", f"{size / 1e9:.2f} GB", EXACT, note)


def sweep_table(
    configs: dict[str, PretrainConfig], arguments: argparse.Namespace, gpu: GPU
) -> Table:
    """A row for each configuration, smallest first."""
    sizes = {
        name: plan_size(config, arguments.ranks, gpu, arguments.mfu)
        for name, config in configs.items()
    }
    table = Table(
        title=f"{arguments.ranks} x {gpu.name} of {gpu.memory_gib:g} GiB",
        caption=SWEEP_LEGEND,
        padding=0,
        **STYLE,
    )
    table.add_column("backbone", no_wrap=True)
    for column in SWEEP_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, size in sorted(sizes.items(), key=lambda each: each[1].parameters.trained):
        table.add_row(
            name,
            f"{size.parameters.trained / 1e6:.0f}",
            f"{size.flops.total / 1e12:.2f}",
            *(f"{held / GIB:.1f}" for held in size.held),
            "none" if size.stage is None else str(size.stage),
            *map(str, size.micro_batches),
            f"{size.samples_per_second:.1f}",
            f"{checkpoint_bytes(size.parameters) / 1e9:.1f}",
        )
    return table
