"""What one GPU can do with this code, in parts: python -m benchmarks.gpu --minutes 12

    pip install transformers   # its V-JEPA 2 and VideoMAE; without it their rows are left out

The most valuable part comes first. Each part runs in a process of its own, so that no part sees the
memory or the compiled code of another, and a part that fails or hangs does not stop the others.
While a part runs, the process of the next one imports its modules. A row of a table is in
DIR/results.json as soon as it is printed. A part starts only if its stated time still fits. The
stated times are estimates for an H100; the time that a part took stands behind its table.

With --device cpu --tiny every part runs on a CPU with tiny shapes, which tests the parts and
measures nothing.
"""

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu_results import Report, read_part, skip_part


class Part(NamedTuple):
    """One table."""

    function: str  # MODULE.FUNCTION in benchmarks
    seconds: int  # stated time, on an H100, with the start of the process
    question: str


# Most valuable first.
PARTS = {
    "speed": Part("gpu_speed.speed", 170, "samples/s of the step, V-JEPA 2's and VideoMAE's"),
    "syncs": Part("gpu_syncs.syncs", 60, "host synchronisations of a step, and where they are"),
    "tokens": Part("gpu_speed.tokens", 70, "samples/s with fewer tokens"),
    "stages": Part("gpu_stages.stages", 70, "the losses of all ZeRO stages, beside the CPU's"),
    "precision": Part("gpu_speed.precision", 50, "samples/s in TF32 and fp32"),
    "resume": Part("gpu_resume.resume", 80, "whether a resumed run equals an uninterrupted one"),
    "deterministic": Part("gpu_resume.deterministic", 80, "the same with engine.deterministic"),
    "deterministic_cost": Part("gpu_speed.deterministic_cost", 50, "what that costs in samples/s"),
    "micro_batch": Part("gpu_memory.micro_batch", 80, "the largest micro-batch that fits"),
    "save": Part("gpu_memory.save", 70, "how long a save blocks a step"),
    "teacher": Part("gpu_teacher.teacher", 40, "the teacher's share of a step"),
    "features": Part("gpu_data.features", 40, "features per second in evaluation"),
    "loader": Part("gpu_data.loader", 90, "what the loader decodes against what a step needs"),
    "trace": Part("gpu_syncs.trace", 40, "the costliest operations of a step"),
}


def main() -> int:
    options = parse_arguments()
    if options.part:
        return run_part(options.part, options)
    options.out.mkdir(parents=True, exist_ok=True)
    return run_parts(options.parts, options)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n" + "\n".join(f"  {name:19}{p.question}" for name, p in PARTS.items()),
    )
    parser.add_argument("--minutes", type=float, default=12, help="time for all (default: 12)")
    parser.add_argument(
        "--parts",
        nargs="+",
        default=[*PARTS],
        choices=[*PARTS],
        metavar="NAME",
        help="default: all",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="default: runs/gpu"
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="default: cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: test the parts")
    parser.add_argument("--backbone", default="vit_large", help="default: vit_large")
    parser.add_argument("--frames", type=int, default=16, help="per clip (default: 16)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: 224)")
    parser.add_argument("--batch", type=int, default=32, help="videos per step (default: 32)")
    parser.add_argument("--part", choices=[*PARTS], help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run_parts(names: list[str], options: argparse.Namespace) -> int:
    """Run the parts in turn while their stated times fit; 1 if one of them failed."""
    deadline = time.monotonic() + 60 * options.minutes
    prepared: dict[str, subprocess.Popen] = {}
    failed = []
    try:
        for name, following in zip(names, [*names[1:], None], strict=True):
            left = deadline - time.monotonic()
            part = PARTS[name]
            print(f"\n== {name}: {part.question} (stated {part.seconds} s)", flush=True)
            if part.seconds > left:
                print(f"skipped: {max(0.0, left):.0f} s are left", flush=True)
                skip_part(options.out, name, f"{max(0.0, left):.0f} s were left")
                continue
            process = prepared.pop(name, None) or prepare_part(name, options)
            if following:
                prepared[following] = prepare_part(following, options)
            if not finish_part(name, process, deadline, options.out):
                failed.append(name)
    finally:
        for process in prepared.values():
            stop_part(process)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", flush=True)
    return 1 if failed else 0


def prepare_part(name: str, options: argparse.Namespace) -> subprocess.Popen:
    """Start the part's process, which imports its modules and waits."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--part", name]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    if options.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # MoFore trains on a GPU where it sees one
    # A session of its own, so that its workers can be stopped with it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def finish_part(name: str, process: subprocess.Popen, deadline: float, out: Path) -> bool:
    """Let a prepared part run to its end or to the deadline; whether it succeeded."""
    start = time.monotonic()
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"\n")
        process.stdin.close()
    try:
        code = process.wait(timeout=deadline - start)
    except subprocess.TimeoutExpired:
        print(f"ERROR in {name}: stopped, the time is up; its rows so far are kept", flush=True)
        Report(out, name, resume=True).fail("stopped: the time was up")
        code = 1
    finally:
        stop_part(process)
    if code and "error" not in read_part(out, name):  # killed, or it could not even start
        Report(out, name, resume=True).fail(f"exit code {code}")
    print(f"-- {name} took {time.monotonic() - start:.0f} s", flush=True)
    return code == 0


def stop_part(process: subprocess.Popen) -> None:
    """End a part's process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdin
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def run_part(name: str, options: argparse.Namespace) -> int:
    """In the part's process: import, wait for the line that starts it, run."""
    module, function = PARTS[name].function.split(".")
    with contextlib.suppress(Exception):  # raised again below, when it is this part's turn
        importlib.import_module(f"benchmarks.{module}")
    if not sys.stdin.readline():
        return 1  # the benchmark has ended
    report = Report(options.out, name)
    try:
        start = time.monotonic()
        getattr(importlib.import_module(f"benchmarks.{module}"), function)(options, report)
        report.finish(time.monotonic() - start)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        print(f"ERROR in {name}: {type(error).__name__}: {error}", flush=True)
        report.fail(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
