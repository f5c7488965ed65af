# PYTHON_ARGCOMPLETE_OK
"""`mofore COMMAND [SUBJECT] [--flag ...] [key=value ...]`: parse, call one function, exit.

Exit codes: 0 done, 1 a job or a compared run failed, 2 a mistake to fix (one message, no
traceback), 75 stopped by a signal (rerun the same command to resume), 130 interrupted by Ctrl-C.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mofore
from mofore.errors import UserError
from mofore.launch.arguments import (
    SUBMISSION,
    SUBMISSION_DETAILS,
    CommandParser,
    Commands,
    add_command,
    add_config_dir,
    add_keys,
    add_run,
    add_submission,
    run,
)
from mofore.launch.commands import add_commands, describe_pretrain
from mofore.launch.data_pages import add_data
from mofore.launch.plan import add_plan
from mofore.launch.profiler import add_profile

MISSING = "???"  # omegaconf's mark of a value that must be given


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    return run(parser, argv)


def build_parser() -> CommandParser:
    parser = CommandParser(
        "mofore",
        description="Pretrain video encoders by forecasting, and measure what they learned.",
        examples=("mofore demo", "mofore pretrain --help"),
    )
    parser.add_argument("--version", action="version", version=f"mofore {mofore.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_commands(commands)
    add_data(commands)
    add_config(commands)
    add_plan(commands)
    add_profile(commands)
    add_submit(commands)
    add_jobs(commands)
    add_logs(commands)
    add_cancel(commands)
    add_resume(commands)
    add_demo(commands)
    return parser


def add_config(commands: Commands) -> None:
    parser = add_command(
        commands,
        "config",
        run_config,
        "print the resolved configuration of a pretraining as YAML",
        examples=("mofore config experiment=mine --config-dir configs",),
        describe=describe_pretrain,
    )
    add_keys(parser)
    add_config_dir(parser)


def run_config(arguments: argparse.Namespace) -> int:
    from mofore.config import PretrainConfig, compose, to_yaml

    keys, config_dir = arguments.keys, arguments.config_dir
    try:
        config = compose(PretrainConfig, keys, config_dir)
    except UserError:
        if any(key.startswith("data.manifest=") for key in keys):
            raise
        # valid but for the manifest, which need not exist yet; another mistake is raised again
        config = compose(PretrainConfig, [*keys, "data.manifest=missing"], config_dir)
        config = replace(config, data=replace(config.data, manifest=MISSING))
    print(to_yaml(config), end="")
    return 0


def add_submit(commands: Commands) -> None:
    parser = add_command(
        commands,
        "submit",
        run_submit,
        "submit a job, or run it here",
        describe=describe_submit,
        **SUBMISSION,
    )
    parser.description = f"{parser.description}\n{SUBMISSION_DETAILS}"
    add_submission(parser)


def describe_submit() -> str:
    from mofore.launch.submit import describe

    return describe()


def run_submit(arguments: argparse.Namespace) -> int:
    from mofore.launch import submit

    return submit.run_submit(arguments)


def add_jobs(commands: Commands) -> None:
    parser = add_command(
        commands,
        "jobs",
        run_jobs,
        "list runs with their state, speed, time left and newest checkpoint",
        examples=("mofore jobs runs",),
    )
    parser.add_argument(
        "roots",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="FOLDER",
        help="run folders, or folders with runs below them (default: runs)",
    )


def run_jobs(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import jobs

    return jobs(arguments.roots)


def add_logs(commands: Commands) -> None:
    parser = add_command(
        commands,
        "logs",
        run_logs,
        "print the log of one rank",
        examples=("mofore logs runs/mine -f",),
    )
    add_run(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="print new lines until the run ends, or Ctrl-C"
    )
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="default: 0")


def run_logs(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import logs

    return logs(arguments.run_dir, arguments.follow, arguments.rank)


def add_cancel(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cancel",
        run_cancel,
        "stop a run, or all runs below a folder; pretraining saves first",
        examples=("mofore cancel runs/mine",),
    )
    add_run(parser, "run folder, or a folder with runs below it")


def run_cancel(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import cancel

    return cancel(arguments.run_dir)


def add_resume(commands: Commands) -> None:
    parser = add_command(
        commands,
        "resume",
        run_resume,
        "resume a run as it was last submitted or started",
        examples=("mofore resume runs/mine cluster.time=48h checkpoint.every=500",),
    )
    add_run(parser)
    add_keys(parser, "cluster.* keys, and keys that do not change what is computed")


def run_resume(arguments: argparse.Namespace) -> int:
    from mofore.launch.resume import resume

    return resume(arguments.run_dir, arguments.keys)


def add_demo(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        run_demo,
        "run the whole pipeline on small generated videos, in about ten minutes on two cores",
        examples=("mofore demo --out demo steps=200",),
    )
    parser.add_argument(
        "--out", default="demo", metavar="DIR", help="output folder (default: demo)"
    )
    add_keys(parser, "keys of `mofore pretrain`, on top of experiment=demo")


def run_demo(arguments: argparse.Namespace) -> int:
    from mofore.launch.demo import demo

    return demo(Path(arguments.out), arguments.keys)


if __name__ == "__main__":
    sys.exit(main())
