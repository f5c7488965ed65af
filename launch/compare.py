"""Results of several runs side by side: their results.json -> one table.

OUT/compare.json and OUT/compare.txt. A run without results is listed with the reason.
"""

import json
import re
from pathlib import Path
from typing import Any

from rich.console import Console

from mofore.errors import UserError
from mofore.evaluation.console import rich_table
from mofore.files import replace_file, write_json
from mofore.launch.runs import job_states, read_submissions

SHOWN_ENCODERS = ("trained", "untrained")
# as the command line and mofore.logs write errors
ERROR = re.compile(r"(?:^mofore: error:| ERROR +\[rank \d+\]) (.*)")


def compare(runs: list[Path], out: Path | None) -> int:
    """Print the table and write it to `out`, if given. Returns 1 if a run has no results."""
    missing = [run for run in runs if not run.is_dir()]
    if missing:
        raise UserError(f"There is no run folder {missing[0]}.")
    results: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for run in runs:
        try:
            document = json.loads((run / "evaluation/results.json").read_text())
        except FileNotFoundError:
            failures[run.name] = explain_missing(run)
            continue
        shown = [each for each in document["results"] if each["encoder"] in SHOWN_ENCODERS]
        results += [name_encoder(result, run.name) for result in shown]
    print_comparison(Console(), results, failures)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "compare.json", {"results": results, "failures": failures})
        with replace_file(out / "compare.txt") as temporary, temporary.open("w") as file:
            width = 60 + 24 * len(SHOWN_ENCODERS) * len(runs)
            print_comparison(Console(file=file, width=width), results, failures)
        print(f"comparison: {out / 'compare.json'}, {out / 'compare.txt'}")
    return 1 if failures else 0


def print_comparison(
    console: Console, results: list[dict[str, Any]], failures: dict[str, str]
) -> None:
    if results:
        console.print(rich_table(results))
    for name, reason in failures.items():
        console.print(f"{name}: no results: {reason}", soft_wrap=True, markup=False)


def name_encoder(result: dict[str, Any], run: str) -> dict[str, Any]:
    """The trained encoder gets the run's name, the untrained one that name with a suffix."""
    return result | {"encoder": run if result["encoder"] == "trained" else f"{run}, untrained"}


def explain_missing(run: Path) -> str:
    """Why a run has no results: the states of its last jobs, and their errors."""
    last = {each.task: each for each in read_submissions(run)}
    if not last:
        return f"it has not been evaluated: mofore evaluate {run}"
    states = job_states([each.id for each in last.values() if each.executor == "slurm"])
    parts = [f"{name} {states.get(job.id, 'ended')} (job {job.id})" for name, job in last.items()]
    errors = [last_error(Path(job.log.replace("%t", "0"))) for job in last.values()]
    return "; ".join([*parts, *(error for error in errors if error)])


def last_error(log: Path) -> str | None:
    """The message of the last error that a job logged, else the last line of a traceback."""
    if not log.is_file():
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [match[1] for line in lines if (match := ERROR.search(line))]
    tracebacks = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return next(iter([*errors[-1:], *tracebacks[-1:]]), None)
