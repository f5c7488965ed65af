"""What all command lines share: the parser, common arguments, and exit codes.

    mofore COMMAND [SUBJECT] [--flag ...] [key=value ...]

Imports nothing heavy: a command imports what it needs when it runs, so that `--help` is fast.
"""

import argparse
import errno
import os
import re
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from mofore.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from mofore.logs import setup_logging
from mofore.open_files import too_few_files

EXIT_BROKEN_PIPE = 141  # as the shell reports a process that SIGPIPE ended
KEY_VALUE = re.compile(r"[A-Za-z_][\w.]*=")
TASKS = ("pretrain", "evaluate", "prepare")  # of `mofore submit`


class CommandParser(argparse.ArgumentParser):
    """argparse with examples and keys in the help, and one form of error."""

    def __init__(
        self,
        prog: str | None = None,
        examples: Sequence[str] = (),
        describe: Callable[[], str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(prog, allow_abbrev=False, **options)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.epilog = "\n  ".join(["examples:", *examples]) if examples else None
        self.describe = describe  # the keys of the command

    def format_help(self) -> str:
        keys = f"\nkeys:\n{self.describe()}\n" if self.describe else ""
        return super().format_help() + keys

    def error(self, message: str) -> Any:
        self.exit(EXIT_USER_ERROR, f"{self.format_usage()}mofore: error: {message}\n")


Commands: TypeAlias = "argparse._SubParsersAction[CommandParser]"


def add_command(
    commands: Commands, name: str, run: Callable[..., int], summary: str, **options: Any
) -> CommandParser:
    """A subcommand; `run` gets its parsed arguments and returns the exit code."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **options
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_keys(parser: CommandParser, meaning: str = "configuration keys, listed below") -> None:
    action = parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help=meaning)
    action.completer = lambda **_: ()  # type: ignore[attr-defined]  # file names are no keys


def add_run(parser: CommandParser, meaning: str = "run folder") -> None:
    parser.add_argument("run_dir", metavar="RUN", type=run_dir, help=meaning)


def add_config_dir(parser: CommandParser) -> None:
    parser.add_argument(
        "--config-dir",
        type=Path,
        metavar="DIR",
        help="folder with your own experiment/, backbone/, cluster/ and sweep/ YAML files, "
        "searched first",
    )


def add_submission(parser: CommandParser) -> None:
    """The arguments of `mofore submit` and of `python launch/submit.py`.

    The task and its arguments are left to `parse`, which returns them in order: the flags among
    them belong to the task.
    """
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the script and the resolved configuration, submit nothing",
    )
    parser.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="pretrain and evaluate every combination of KEY=VALUE1,VALUE2, then compare them",
    )
    add_config_dir(parser)
    if "_ARGCOMPLETE" in os.environ:  # only to complete: when parsed it would lose the order
        parser.add_argument("task_argv", nargs="*").completer = complete_task  # type: ignore
    parser.set_defaults(keys=[], passes_flags=True)


SUBMISSION: dict[str, Any] = {
    "usage": "%(prog)s [TASK] [SUBJECT] [KEY=VALUE ...] [--dry-run] [--multirun]\n"
    "       [--config-dir DIR]",
    "examples": (
        "mofore submit cluster=slurm cluster.nodes=2 cluster.gpus_per_node=8 data.manifest=FILE",
        "mofore submit evaluate runs/mine cluster=slurm cluster.gpus_per_node=1",
        "mofore submit prepare VIDEOS --out data/mine --workers 16 cluster=slurm",
        "mofore submit cluster=slurm backbone=vit_tiny,vit_small data.manifest=FILE --multirun",
        "mofore submit cluster=slurm sweep=sizes data.manifest=FILE evaluate.views=8",
    ),
}
SUBMISSION_DETAILS = """
TASK is pretrain (the default), evaluate or prepare; its arguments and keys are those of
`mofore TASK --help`. cluster=slurm submits a job and returns; cluster=local runs the ranks
as processes of this machine, cluster=debug in this process. Everything is checked before
anything is submitted. A SLURM job runs a copy of the code, so later edits do not affect it.
sweep=NAME reads the values of a sweep from sweep/NAME.yaml."""


def complete_task(prefix: str, **_: Any) -> list[str]:
    """Task names and paths, for shell completion."""
    from argcomplete.completers import FilesCompleter

    return [*(task for task in TASKS if task.startswith(prefix)), *FilesCompleter()(prefix)]


def run_dir(text: str) -> Path:
    """A positional RUN. KEY=VALUE in its place is an error, unless a folder has that name."""
    if KEY_VALUE.match(text) and not Path(text).is_dir():
        key, _, value = text.partition("=")
        remedy = f"write {value}" if key == "run" else f"write the folder first: RUN {text}"
        raise argparse.ArgumentTypeError(f"a run folder is expected, not {text}: {remedy}")
    return Path(text)


def parse(parser: CommandParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments; KEY=VALUE pairs may stand before, between and after flags."""
    arguments, rest = parser.parse_known_args(argv)
    flags = [word for word in rest if word.startswith("-")]
    unknown = flags if "keys" in arguments else rest
    if unknown and "passes_flags" not in arguments:
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if "keys" in arguments:
        arguments.keys = [*arguments.keys, *rest]
    return arguments


def run(parser: CommandParser, argv: Sequence[str] | None) -> int:
    """Run the command that `argv` names and return its exit code."""
    try:
        try:
            arguments = parse(parser, argv)
            setup_logging()
            return arguments.run(arguments)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"mofore: error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("mofore: interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader has left, as in `mofore jobs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        print(f"mofore: error: {too_few_files(limit, 'needs more')}", file=sys.stderr)
        return EXIT_USER_ERROR
