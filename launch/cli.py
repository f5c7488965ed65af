"""`mofore COMMAND ...`: words in, one function called, an exit code out.

0 done, 2 a mistake to mend (one message, no traceback), 75 stopped by a signal: the same command goes on,
130 stopped at once by Ctrl-C. What a command needs is imported when it runs, so `--help` is quick.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mofore.errors import UserError

KEYS = "KEY=VALUE pairs; --help lists the keys"


def main(words: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(words)
    try:
        return arguments.run(arguments)
    except UserError as mistake:
        print(f"mofore: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mofore: stopped.", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mofore", description="Pretrain video encoders by forecasting, and see what they learned."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="scan videos and write their manifest")
    prepare.set_defaults(run=run_prepare)
    prepare.add_argument(
        "root", help="folder of videos; its subfolders are classes, used in evaluation only"
    )
    prepare.add_argument("--out", required=True, help="folder for manifest.parquet and refused.csv")
    prepare.add_argument(
        "--list", dest="listing", help="take these files: a path a line, or a CSV with a column uri"
    )
    prepare.add_argument(
        "--split",
        nargs="+",
        default=(),
        metavar="FILE",
        help="split lists in UCF101's format (trainlist01.txt testlist01.txt), or the word random-80-20",
    )
    prepare.add_argument("--classes", help="classInd.txt: number and name of each class")
    prepare.add_argument(
        "--groups",
        help="source of each video: a file of path<TAB>group, or the word ucf101 (_gNN_)",
    )
    prepare.add_argument("--workers", type=int, help="processes (default: one a core)")
    prepare.add_argument(
        "--timeout", type=float, default=60.0, help="seconds that one file may take (default: 60)"
    )

    add_keyed(
        commands, "pretrain", "train an encoder; goes on where the run folder stands", run_pretrain
    )
    add_keyed(
        commands, "evaluate", "measure a run's encoder beside its baselines: run=RUN", run_evaluate
    )
    report = commands.add_parser("report", help="write RUN/report.html: mofore report run=RUN")
    report.set_defaults(run=run_report)
    report.add_argument("of", metavar="run=RUN", type=run_folder)
    export = commands.add_parser(
        "export", help="write a run's encoder: mofore export run=RUN --out DIR"
    )
    export.set_defaults(run=run_export)
    export.add_argument("of", metavar="run=RUN", type=run_folder)
    export.add_argument(
        "--out", required=True, help="folder for encoder.safetensors and encoder.json"
    )
    add_watching(commands)
    demo = commands.add_parser(
        "demo", help="the whole way on small videos, in about ten minutes on two cores"
    )
    demo.set_defaults(run=run_demo)
    demo.add_argument("--out", default="demo", help="folder for all of it (default: demo)")
    demo.add_argument(
        "keys", nargs="*", metavar="KEY=VALUE", help="override experiment=demo, as in `pretrain`"
    )
    return parser


def add_watching(commands) -> None:
    """What tells of runs and steers them, on a cluster and on a laptop."""
    compare = commands.add_parser("compare", help="the results of several runs side by side")
    compare.set_defaults(run=run_compare)
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    compare.add_argument("--out", type=Path, help="folder for compare.json and compare.txt")
    jobs = commands.add_parser(
        "jobs", help="runs with their state, speed, end and newest checkpoint"
    )
    jobs.set_defaults(run=run_jobs)
    jobs.add_argument(
        "roots",
        nargs="*",
        type=Path,
        default=[Path("runs")],
        metavar="FOLDER",
        help="runs, or folders with runs below them (default: runs)",
    )
    logs = commands.add_parser("logs", help="what a rank of a run's newest job says")
    logs.set_defaults(run=run_logs)
    logs.add_argument("of", metavar="RUN", type=run_folder)
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on until the run ends, or Ctrl-C"
    )
    logs.add_argument("--rank", type=int, default=0, help="(default: 0)")
    cancel = commands.add_parser(
        "cancel", help="end a run, or all below a folder; what trains saves first"
    )
    cancel.set_defaults(run=run_cancel)
    cancel.add_argument("of", metavar="RUN", type=run_folder)
    resume = commands.add_parser(
        "resume", help="go on with a run, as it was submitted or started last"
    )
    resume.set_defaults(run=run_resume)
    resume.add_argument("of", metavar="RUN", type=run_folder)
    resume.add_argument(
        "keys",
        nargs="*",
        metavar="KEY=VALUE",
        help="cluster.*, or keys that do not change what is computed",
    )


def add_keyed(commands, name: str, about: str, run) -> None:
    """A command whose words are all KEY=VALUE, with a --help of its own that lists the keys."""
    parser = commands.add_parser(name, help=about, description=about, add_help=False)
    parser.set_defaults(run=run)
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("-h", "--help", action="store_true")


def run_folder(word: str) -> Path:
    """run=RUN, or the bare folder."""
    return Path(word.removeprefix("run="))


def run_prepare(arguments: argparse.Namespace) -> int:
    from mofore.data.prepare import prepare

    done = prepare(
        arguments.root,
        arguments.out,
        listing=arguments.listing,
        splits=arguments.split,
        classes=arguments.classes,
        groups=arguments.groups,
        workers=arguments.workers,
        timeout=arguments.timeout,
    )
    for note in done.notes:
        print(f"note: {note}")
    print(f"{done.videos} videos: {done.manifest}")
    print(f"{len(done.refused)} refused: {done.refused_csv}")
    return 0


def run_pretrain(arguments: argparse.Namespace) -> int:
    from mofore import config

    if arguments.help:
        print("mofore pretrain data.manifest=FILE [KEY=VALUE ...]\n")
        print(config.describe_keys(config.PretrainConfig))
        return 0
    from mofore.train import main as pretrain

    return pretrain(arguments.keys)


def run_evaluate(arguments: argparse.Namespace) -> int:
    from mofore import config
    from mofore.evaluation.config import EvaluateConfig

    if arguments.help:
        print("mofore evaluate run=RUN [KEY=VALUE ...]\n")
        print(config.describe_keys(EvaluateConfig))
        return 0
    from mofore.evaluation.console import show
    from mofore.evaluation.evaluate import evaluate

    show(evaluate(config.compose(EvaluateConfig, arguments.keys)))
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    from mofore.evaluation.report import write_report

    print(f"report: {write_report(arguments.of)}")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    from mofore.run_folder import export_run

    checkpoint = export_run(arguments.of, Path(arguments.out))
    print(
        f"encoder of step {checkpoint.step}: {arguments.out} (mofore.load_encoder({arguments.out!r}))"
    )
    return 0


def run_compare(arguments: argparse.Namespace) -> int:
    from mofore.launch.compare import compare

    return compare(arguments.runs, arguments.out)


def run_jobs(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import jobs

    return jobs(arguments.roots)


def run_logs(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import logs

    return logs(arguments.of, arguments.follow, arguments.rank)


def run_cancel(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import cancel

    return cancel(arguments.of)


def run_resume(arguments: argparse.Namespace) -> int:
    from mofore.launch.monitor import resume

    return resume(arguments.of, arguments.keys)


def run_demo(arguments: argparse.Namespace) -> int:
    from mofore.launch.demo import demo

    return demo(Path(arguments.out), arguments.keys)


if __name__ == "__main__":
    sys.exit(main())
