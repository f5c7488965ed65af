"""`mofore profile`: a few training steps under torch's profiler, and what each kind of work costs.

Nothing is saved but the trace and the table. Ranks: torchrun ... -m mofore.launch.cli profile ...
"""

import argparse
import gzip
import itertools
import json
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mofore.errors import UserError
from mofore.launch.arguments import Commands, add_command, add_config_dir, add_keys
from mofore.launch.commands import describe_pretrain

if TYPE_CHECKING:
    import torch

    from mofore.config import PretrainConfig
    from mofore.types import Batch

WARM_UP, TIMED, PROFILED = 3, 5, 20  # steps
FIRST = WARM_UP + TIMED + 1  # of the profiled steps, after one that only starts the profiler
LAST = FIRST + PROFILED
NAME_WIDTH = 60
INDENT = " " * 18
HINT = INDENT + "-> "
NO_MANIFEST = "none"  # stands for random clips


class Measured(NamedTuple):
    """Of a step without the profiler, which makes it slower and takes memory itself."""

    seconds: float
    peak_memory_gib: float


def add_profile(commands: Commands) -> None:
    parser = add_command(
        commands,
        "profile",
        run_profile,
        f"run {PROFILED} training steps under torch's profiler and list what they cost",
        examples=(
            "mofore profile backbone=vit_small global_batch=16",
            "mofore profile data.manifest=data/mine/manifest.parquet --out profile",
        ),
        describe=describe_pretrain,
    )
    parser.description = f"{parser.description}\n{DETAILS}"
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("profile"),
        metavar="DIR",
        help="folder for profile.txt and trace.json.gz (default: profile)",
    )
    add_keys(parser)
    add_config_dir(parser)


DETAILS = """
Without data.manifest the clips are random and wait for nothing. With it the steps read videos as
a run does. No checkpoint is read or written. Open trace.json.gz at https://ui.perfetto.dev or in
chrome://tracing. For several ranks:
torchrun --nproc_per_node N -m mofore.launch.cli profile KEY=VALUE ..."""


def run_profile(arguments: argparse.Namespace) -> int:
    from mofore.parallel.collectives import get_rank

    table = profile(compose_profile(arguments.keys, arguments.config_dir), arguments.out)
    if get_rank() == 0:
        print(table)
    return 0


def compose_profile(keys: list[str], config_dir: Path | None) -> "PretrainConfig":
    """The configuration of the steps; its manifest is NO_MANIFEST if none is given."""
    from mofore.config import PretrainConfig, compose

    try:
        return compose(PretrainConfig, keys, config_dir)
    except UserError:
        if any(key.startswith("data.manifest=") for key in keys):
            raise
        # valid but for the manifest; another mistake is raised again
        return compose(PretrainConfig, [*keys, f"data.manifest={NO_MANIFEST}"], config_dir)


def profile(config: "PretrainConfig", out: Path) -> str:
    """Make the steps on every rank; rank 0 writes the trace and the table, which is returned.

    Raises UserError for what the user can fix.
    """
    import torch

    from mofore.parallel.collectives import get_rank
    from mofore.parallel.engine import start_ranks
    from mofore.parallel.liveness import RankLost, rendezvous
    from mofore.train import explain_out_of_memory

    make_folder(out)
    # The loader must not end before the steps do.
    config = replace(config, steps=max(config.steps, LAST))
    try:
        with rendezvous(config.engine.timeout):
            device = start_ranks(config.engine)
    except RankLost as error:
        raise UserError(str(error)) from error
    trace = out / "trace.json.gz"
    try:
        measured = trace_steps(config, device, trace if get_rank() == 0 else None)
    except torch.OutOfMemoryError as error:
        raise UserError(explain_out_of_memory(config, error)) from error
    if get_rank():
        return ""
    table = describe(config, device, measured, trace)
    (out / "profile.txt").write_text(table + "\n")
    return table


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}. Give a folder to write to.") from error


def trace_steps(config: "PretrainConfig", device: "torch.device", trace: Path | None) -> Measured:
    """Make the steps and write the trace; None: another rank does."""
    import torch
    from torch.profiler import ProfilerActivity, record_function, schedule
    from tqdm import tqdm

    from mofore.metrics import peak_memory_gib
    from mofore.profiling import quiet_profiler
    from mofore.startup import build_training_engine
    from mofore.step import TrainingStep
    from mofore.trace_costs import DATA_WAIT

    quiet_profiler()
    engine = build_training_engine(config, None, device)
    training_step, batches = TrainingStep(config, engine), load_steps(config, device)
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=WARM_UP + TIMED, warmup=1, active=PROFILED, repeat=1)
    save = (lambda done: done.export_chrome_trace(str(trace))) if trace else None
    marks, memory = {}, 0.0  # step -> seconds at its start
    with (
        torch.profiler.profile(
            activities=activities, schedule=plan, on_trace_ready=save
        ) as profiler,
        # None: on a terminal only
        tqdm(total=LAST, desc="profile", unit="step", disable=None if trace else True) as bar,
    ):
        for number in range(LAST):
            with record_function(DATA_WAIT):
                micro_batches = next(batches)
            training_step(number, micro_batches)
            bar.update()
            if number + 1 in (WARM_UP, WARM_UP + TIMED, FIRST, LAST):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                marks[number + 1] = time.perf_counter()
            if number + 1 == WARM_UP + TIMED:
                memory = peak_memory_gib(device)
            profiler.step()
    return Measured((marks[WARM_UP + TIMED] - marks[WARM_UP]) / TIMED, memory)


def load_steps(config: "PretrainConfig", device: "torch.device") -> "Iterator[list[Batch]]":
    """This rank's micro-batches of each step: of the manifest, or the same random ones again."""
    from mofore.data.dataset import usable_rows
    from mofore.data.manifest import read_manifest
    from mofore.parallel.collectives import get_world_size
    from mofore.profiling import random_batch
    from mofore.startup import load_batches

    micro_batch, count = config.split_batch(get_world_size())
    if config.data.manifest == NO_MANIFEST:
        return itertools.repeat([random_batch(config, micro_batch, device) for _ in range(count)])
    manifest = read_manifest(config.data.manifest, config.data.root)
    rows, _ = usable_rows(manifest, config.data, clips=2)
    batches = load_batches(config, manifest, rows, 0, device)
    return ([next(batches) for _ in range(count)] for _ in range(LAST))


def describe(
    config: "PretrainConfig", device: "torch.device", measured: Measured, trace: Path
) -> str:
    """The table: what a step costs, by kind of work, and what makes each cheaper."""
    import torch

    from mofore.flops import flops_per_video
    from mofore.parallel.collectives import get_world_size
    from mofore.precision import resolve_precision
    from mofore.profiling import build_step_cost
    from mofore.trace_costs import trace_costs

    with gzip.open(trace) as file:
        found = trace_costs(json.load(file)["traceEvents"])
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    precision = resolve_precision(config.engine.precision, device).name
    seconds, memory = measured
    speed = build_step_cost(config, device).metrics(seconds)
    mfu = "" if speed["mfu"] is None else f", {speed['mfu']:.1%} MFU"
    flops = flops_per_video(config)
    shares = ", ".join(
        f"{part} {value / flops.total:.0%}" for part, value in flops._asdict().items()
    )
    lines = [
        f"{get_world_size()} rank(s), {name}, {precision}, global_batch={config.global_batch}",
        f"a step: {seconds * 1e3:.1f} ms ({found.milliseconds:.1f} ms under the profiler), "
        f"{config.global_batch / seconds:.3g} samples/s",
        f"each rank: {speed['tflops_per_second']:.3g} TFLOP/s{mfu}, peak memory {memory:.2f} GiB",
        f"FLOPs: {shares}",
    ]
    if get_world_size() > 1:
        lines.append(
            f"collectives: {found.collectives:.1f} ms a step, those that computation hides included"
        )
    lines += ["", f"{'ms/step':>9}  {'share':>5}  work (its costliest operation)"]
    for cost in found.costs:
        operation = f" ({cost.costliest[:NAME_WIDTH]})" if cost.costliest else ""
        lines.append(f"{cost.milliseconds:9.2f}  {cost.share:5.1%}  {cost.kind.name}{operation}")
        lines += textwrap.wrap(cost.kind.advice, 96, initial_indent=HINT, subsequent_indent=INDENT)
    return "\n".join(lines)
