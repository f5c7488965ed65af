"""The commands that work on one data set or run, on their own or inside a job.

`mofore` offers them on the command line; a job runs one of them by its arguments (launch/job.py).
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mofore.errors import UserError
from mofore.launch.arguments import (
    CommandParser,
    Commands,
    add_command,
    add_config_dir,
    add_keys,
    add_run,
    parse,
    run,
)

# Open files of `prepare` and of each of its processes, as counted.
FILES_OF_PREPARE, FILES_PER_PROCESS = 16, 4

if TYPE_CHECKING:
    from mofore.evaluation.config import EvaluateConfig


def run_command(argv: Sequence[str]) -> int:
    """Run one of the commands below; returns its exit code."""
    return run(build_parser(), argv)


def parse_command(argv: Sequence[str]) -> argparse.Namespace:
    """Parse without running; a mistake ends the process with a usage line and exit code 2."""
    return parse(build_parser(), argv)


def build_parser() -> CommandParser:
    parser = CommandParser("mofore")
    add_commands(parser.add_subparsers(required=True, metavar="COMMAND"))
    return parser


def add_commands(commands: Commands) -> None:
    add_prepare(commands)
    add_pretrain(commands)
    add_evaluate(commands)
    add_report(commands)
    add_export(commands)
    add_compare(commands)


def add_prepare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "prepare",
        run_prepare,
        "scan a folder of videos and write their manifest",
        examples=(
            "mofore prepare VIDEOS --out data/mine",
            "mofore prepare UCF101 --out data/ucf101 --split trainlist01.txt testlist01.txt "
            "--groups ucf101",
        ),
    )
    parser.add_argument(
        "root",
        metavar="VIDEOS",
        help="folder or URL of videos; its subfolders are classes, or train, val and test with "
        "classes below; used in evaluation only",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder for manifest.parquet, refused.csv and damaged.csv",
    )
    parser.add_argument(
        "--list",
        dest="listing",
        metavar="FILE",
        help="use these files only: one path per line, a CSV with a column path or uri, or a list "
        "of Kinetics, Something-Something, TSN, VideoMAE or mmaction",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        default=(),
        metavar="FILE",
        help="split lists in UCF101's format (trainlist01.txt testlist01.txt), or random-80-20",
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="classInd.txt: number and name of each class"
    )
    parser.add_argument(
        "--groups",
        metavar="FILE",
        help="source of each video: a file of path<TAB>group lines, or ucf101 (_gNN_ in names)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds per file, and again for each 20 MB of it (default: 60)",
    )
    parser.add_argument(
        "--decoders",
        nargs="+",
        choices=["pyav", "decord", "torchcodec"],
        default=["pyav"],
        metavar="NAME",
        help="pyav, decord, torchcodec: the first that seeks to the right frames is used (default: "
        "pyav)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of a video's frames that may be damaged or missing (default: 0.1)",
    )


def run_prepare(arguments: argparse.Namespace) -> int:
    import joblib

    from mofore.data.manifest import Decoder
    from mofore.data.prepare import prepare
    from mofore.open_files import check_open_files

    workers = arguments.workers or joblib.cpu_count()
    check_open_files(FILES_OF_PREPARE + FILES_PER_PROCESS * workers, f"{workers} processes")
    prepared = prepare(
        arguments.root,
        arguments.out,
        listing=arguments.listing,
        splits=arguments.split,
        classes=arguments.classes,
        groups=arguments.groups,
        workers=arguments.workers,
        timeout=arguments.timeout,
        decoders=[Decoder(name) for name in arguments.decoders],
        max_bad_share=arguments.max_bad_share,
    )
    for note in prepared.notes:
        print(f"note: {note}")
    print(f"{prepared.videos} videos: {prepared.manifest}")
    print(
        f"{prepared.damaged} damaged in part, used without the damaged frames: "
        f"{prepared.damaged_csv}"
    )
    print(f"{len(prepared.refused)} refused: {prepared.refused_csv}")
    return 0


def add_pretrain(commands: Commands) -> None:
    parser = add_command(
        commands,
        "pretrain",
        run_pretrain,
        "train an encoder; resumes if the run folder has a checkpoint",
        examples=(
            "mofore pretrain data.manifest=data/mine/manifest.parquet run_dir=runs/mine",
            "mofore pretrain experiment=mine --config-dir configs",
        ),
        describe=describe_pretrain,
    )
    add_keys(parser)
    add_config_dir(parser)


def describe_pretrain() -> str:
    from mofore.config import PretrainConfig
    from mofore.config_help import describe_keys

    return describe_keys(PretrainConfig)


def run_pretrain(arguments: argparse.Namespace) -> int:
    from mofore.train import main as pretrain

    return pretrain(arguments.keys, arguments.config_dir)


def add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run_evaluate,
        "measure a run's encoder and its baselines",
        examples=("mofore evaluate runs/mine views=8",),
        describe=describe_evaluate,
    )
    add_run(parser, "run folder; its newest checkpoint is evaluated")
    add_keys(parser)


def describe_evaluate() -> str:
    from mofore.config_help import describe_keys
    from mofore.evaluation.config import EvaluateConfig

    table = describe_keys(EvaluateConfig)
    return re.sub(r"^run .*\n", "", table, flags=re.MULTILINE)  # it is the argument RUN


def run_evaluate(arguments: argparse.Namespace) -> int:
    from mofore.evaluation.console import print_results
    from mofore.evaluation.evaluate import evaluate

    print_results(evaluate(compose_evaluation(arguments.run_dir, arguments.keys)))
    return 0


def compose_evaluation(run_dir: Path, overrides: list[str]) -> "EvaluateConfig":
    """The configuration of `mofore evaluate RUN KEY=VALUE ...`."""
    from mofore.config import compose
    from mofore.evaluation.config import EvaluateConfig
    from mofore.quoting import to_override

    other = [each for each in overrides if each.startswith("run=")]
    if other:
        raise UserError(f"{other[0]}: the run folder is given already, as {run_dir}.")
    return compose(EvaluateConfig, [to_override("run", str(run_dir)), *overrides])


def add_report(commands: Commands) -> None:
    parser = add_command(
        commands,
        "report",
        run_report,
        "write a run's report.html",
        examples=("mofore report runs/mine",),
    )
    add_run(parser)


def run_report(arguments: argparse.Namespace) -> int:
    from mofore.evaluation.report import write_report

    print(f"report: {write_report(arguments.run_dir)}")
    return 0


def add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        run_export,
        "write a run's encoder for `mofore.load_encoder`",
        examples=("mofore export runs/mine encoders/mine",),
    )
    add_run(parser, "run folder; its newest checkpoint is exported")
    parser.add_argument(
        "out", metavar="DIR", help="folder for encoder.safetensors and encoder.json"
    )


def run_export(arguments: argparse.Namespace) -> int:
    from mofore.run_folder import export_run

    checkpoint = export_run(arguments.run_dir, Path(arguments.out))
    print(f"encoder of step {checkpoint.step}: {arguments.out}")
    print(f"load it with mofore.load_encoder({arguments.out!r})")
    return 0


def add_compare(commands: Commands) -> None:
    parser = add_command(
        commands,
        "compare",
        run_compare,
        "show the results of several runs side by side",
        examples=("mofore compare runs/a runs/b --out runs",),
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="evaluated run folders")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for compare.json and compare.txt"
    )


def run_compare(arguments: argparse.Namespace) -> int:
    from mofore.launch.compare import compare

    return compare(arguments.runs, arguments.out)
