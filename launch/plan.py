"""`mofore plan`: memory, time and cost of a pretraining before it runs, as tables.

keys -> configuration -> mofore.plan -> rows, each marked exact, modelled or assumed -> table
"""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mofore.errors import UserError
from mofore.launch.arguments import CommandParser, Commands, add_command, add_config_dir, add_keys
from mofore.launch.commands import describe_pretrain

if TYPE_CHECKING:
    from mofore.config import PretrainConfig
    from mofore.gpus import GPU
    from mofore.launch.cluster import ClusterConfig
    from mofore.launch.tasks import Task

logger = logging.getLogger(__name__)
DEFAULT_GPU = "h100"
RATES = ("bf16_tflops", "tf32_tflops", "fp32_tflops")
DETAILS = """
The command needs neither data nor a GPU. It exits with 2 if the run does not fit, and prints what
would. Each number is marked as exact (arithmetic on shapes), modelled (read off a step of the model
on tensors without data) or assumed (follows from an option). Without --gpu it plans for the GPU of
this machine, or else for h100."""


def add_plan(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        run_plan,
        "print the memory, time and cost of a pretraining before it runs",
        examples=(
            "mofore plan backbone=vit_large global_batch=512 --ranks 16 --price 2.5",
            "mofore plan backbone=vit_giant engine.zero_stage=1 --ranks 8 --gpu a100",
            "mofore plan --sweep --ranks 8",
        ),
        describe=describe_pretrain,
    )
    parser.description = f"{parser.description}\n{DETAILS}"
    _add_hardware(parser)
    parser.add_argument(
        "--decode-ms",
        type=positive,
        default=150.0,
        metavar="MS",
        help="milliseconds of one core to decode the clips of a sample (default: 150)",
    )
    parser.add_argument(
        "--video-mb",
        type=positive,
        default=1.0,
        metavar="MB",
        help="megabytes that are read for a sample (default: 1)",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="compare the backbones vit_* instead of one plan"
    )
    add_keys(parser)
    add_config_dir(parser)


def _add_hardware(parser: CommandParser) -> None:
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="GPUs (default: 1)")
    parser.add_argument(
        "--gpu", metavar="NAME", help="type of the GPUs: h100, h100-pcie, a100-40gb, l40s, ..."
    )
    parser.add_argument(
        "--gpu-memory", type=positive, metavar="GIB", help="memory of a GPU, if not the type's"
    )
    parser.add_argument(
        "--gpu-tflops",
        type=positive,
        metavar="T",
        help="TFLOP/s of its dense products in the run's precision, if not the type's",
    )
    parser.add_argument(
        "--mfu",
        type=positive,
        default=0.4,
        metavar="SHARE",
        help="share of the GPU's peak rate that a step reaches (default: 0.4)",
    )
    parser.add_argument(
        "--price", type=positive, metavar="P", help="price of a GPU hour, for the cost of the run"
    )


def positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def run_plan(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mofore.launch.plan_tables import plan_table, sweep_table
    from mofore.plan import explain_misfit, make_plan

    if arguments.ranks < 1:
        raise UserError(f"--ranks {arguments.ranks}: give 1 or more.")
    if arguments.mfu > 1:
        raise UserError(f"--mfu {arguments.mfu:g} is a share of the peak rate: give at most 1.")
    gpu = choose_gpu(arguments)
    if arguments.sweep:
        Console().print(sweep_table(compose_sizes(arguments), arguments, gpu))
        return 0
    config = compose_plan(arguments.keys, arguments.config_dir)
    plan = make_plan(config, arguments.ranks, gpu, arguments.mfu)
    Console().print(plan_table(plan, arguments))
    misfit = explain_misfit(config, arguments.ranks, gpu, plan.memory)
    if misfit:
        raise UserError(misfit)
    return 0


def compose_plan(keys: list[str], config_dir: Path | None) -> "PretrainConfig":
    """The configuration of `mofore pretrain KEY=VALUE ...`; the manifest may be left out."""
    from mofore.config import PretrainConfig, compose

    return compose(PretrainConfig, ["data.manifest=none", *keys], config_dir)


def compose_sizes(arguments: argparse.Namespace) -> "dict[str, PretrainConfig]":
    """The configuration with each backbone vit_*, by its name."""
    from mofore.config_help import group_options

    if any(key.startswith("backbone=") for key in arguments.keys):
        raise UserError("--sweep compares the backbones: leave out backbone=NAME.")
    names = [name for name in group_options("backbone", arguments.config_dir) if "vit_" in name]
    return {
        name: compose_plan([f"backbone={name}", *arguments.keys], arguments.config_dir)
        for name in names
    }


def choose_gpu(arguments: argparse.Namespace) -> "GPU":
    """The GPU that the options describe. Raises UserError for a type that is not known."""
    from mofore.gpus import GPU, GPUS, find_gpu

    memory, rate = arguments.gpu_memory, arguments.gpu_tflops
    name = arguments.gpu or _own_gpu() or DEFAULT_GPU
    gpu = find_gpu(name)
    if gpu is None:
        if not (memory and rate):
            raise UserError(
                f"--gpu {name} is not known: give --gpu-memory and --gpu-tflops, or one of "
                f"{', '.join(each.name for each in GPUS)}."
            )
        return GPU(name, memory, rate, rate, rate)
    gpu = gpu._replace(memory_gib=memory or gpu.memory_gib)
    if rate:  # but for units that the GPU does not have
        has = {name for name, known in gpu._asdict().items() if known is not None}
        gpu = gpu._replace(**{name: rate for name in RATES if name in has})
    return gpu


def _own_gpu() -> str | None:
    """The name of this machine's GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def warn_if_too_large(cluster: "ClusterConfig", tasks: "list[Task]") -> None:
    """Warn of pretrainings that the plan expects not to fit into the GPUs of cluster.gpu_type."""
    from mofore.config import PretrainConfig, compose
    from mofore.gpus import find_gpu
    from mofore.plan import explain_misfit

    gpu = find_gpu(cluster.gpu_type) if cluster.gpu_type and cluster.gpus_per_node else None
    for task in tasks:
        if gpu is None or task.name != "pretrain":
            continue
        config = compose(PretrainConfig, task.argv[1:])
        misfit = explain_misfit(config, cluster.world_sizes[0], gpu)
        if misfit:
            logger.warning("%s: %s", task.run, misfit)
