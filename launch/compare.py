"""Several runs side by side: their results.json -> one table, and of those that have none, why.

OUT/compare.json and OUT/compare.txt; a run that failed stands there by name, so nothing is missing unseen.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from mofore.errors import UserError
from mofore.evaluation.console import table
from mofore.files import replace_file
from mofore.launch.runs import job_states, submissions

SHOWN = ("trained", "untrained")


def compare(runs: list[Path], out: Path | None) -> int:
    """Print the table, write it where `out` names a folder, and return 1 where a run has no results."""
    missing = [run for run in runs if not run.is_dir()]
    if missing:
        raise UserError(f"there is no run folder {missing[0]}.")
    names = {run: run.name for run in runs}
    results, failures = [], {}
    for run in runs:
        try:
            document = json.loads((run / "evaluation/results.json").read_text())
        except FileNotFoundError:
            failures[names[run]] = why_none(run)
            continue
        results += [
            named(result, names[run])
            for result in document["results"]
            if result["encoder"] in SHOWN
        ]
    texts = [Console()]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        with replace_file(out / "compare.json") as temporary:
            Path(temporary).write_text(
                json.dumps({"results": results, "failures": failures}, indent=1)
            )
        texts.append(
            Console(file=(out / "compare.txt").open("w"), width=60 + 24 * len(SHOWN) * len(runs))
        )
    for console in texts:
        if results:
            console.print(table(results))
        for name, reason in failures.items():
            console.print(f"{name}: no results: {reason}", soft_wrap=True, markup=False)
    if out:
        texts[1].file.close()
        print(f"comparison: {out / 'compare.json'}, {out / 'compare.txt'}")
    return 1 if failures else 0


def named(result: dict[str, Any], run: str) -> dict[str, Any]:
    """The trained encoder takes the run's name, the untrained one beside it."""
    return result | {"encoder": run if result["encoder"] == "trained" else f"{run}, untrained"}


def why_none(run: Path) -> str:
    """The states of its last jobs, and the last thing that the run said of itself."""
    last = {each.task: each for each in submissions(run)}
    if not last:
        return f"it has not been evaluated: mofore evaluate run={run}"
    states = job_states([each.id for each in last.values() if each.executor == "slurm"])
    told = [f"{task} {states.get(each.id, 'ended')} (job {each.id})" for task, each in last.items()]
    said = [
        words for each in last.values() if (words := last_words(Path(each.log.replace("%t", "0"))))
    ]
    return "; ".join([*told, *said])


def last_words(log: Path) -> str | None:
    """The last message of ours in a log, else the last line of a traceback."""
    if not log.is_file():
        return None
    lines = [
        line.rpartition("\r")[2].strip() for line in log.read_text(errors="replace").splitlines()
    ]
    ours = [line for line in lines if line.startswith("mofore: ")]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return next(iter([*ours[-1:], *errors[-1:]]), None)
