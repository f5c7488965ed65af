"""The tables of benchmarks.gpu: printed row by row, and kept in one JSON file as they grow."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from mofore.files import write_json

RESULTS = "results.json"


class Column(NamedTuple):
    key: str  # in results.json
    title: str  # in the printed table
    width: int
    format: str = ""  # of the value, without the width


class Report:
    """The results of one part. `resume` keeps the rows that another process has recorded."""

    def __init__(self, folder: Path, part: str, resume: bool = False) -> None:
        self.path, self.part, self.columns = folder / RESULTS, part, list[Column]()
        old = _read(self.path)["parts"].get(part) if resume else None
        self.document: dict[str, Any] = old or {"tables": [], "notes": []}

    def environment(self, facts: dict[str, Any]) -> None:
        """Print and record the machine that the numbers come from."""
        self.document["environment"] = facts
        print("  ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
        self._write()

    def table(self, *columns: Column) -> None:
        """Start a table; its rows follow."""
        self.columns = list(columns)
        self.document["tables"].append([])
        print("  ".join(f"{column.title:{_align(column)}}" for column in columns), flush=True)

    def row(self, **values: Any) -> None:
        """Print and record a row. A value without a column is recorded only."""
        cells = []
        for column in self.columns:
            value = values.get(column.key)
            text = "" if value is None else f"{value:{column.format}}"
            cells.append(f"{text:{_align(column)}}")
        print("  ".join(cells).rstrip(), flush=True)
        self.document["tables"][-1].append(_finite(values))
        self._write()

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.document["notes"].append(text)
        self._write()

    def target(self, text: str, met: bool) -> None:
        """Whether a target is met; the text has the target and the value."""
        self.note(f"target: {text}: {'met' if met else 'NOT met'}")

    def finish(self, seconds: float) -> None:
        self.document["seconds"] = round(seconds, 1)
        self._write()

    def fail(self, error: str) -> None:
        self.document["error"] = error
        self._write()

    def _write(self) -> None:
        document = _read(self.path)
        document["parts"][self.part] = self.document
        write_json(self.path, document)


def skip_part(folder: Path, part: str, reason: str) -> None:
    """Record that a part was not started; results of an earlier run are kept."""
    document = _read(folder / RESULTS)
    document["parts"].setdefault(part, {"skipped": reason})
    write_json(folder / RESULTS, document)


def read_part(folder: Path, part: str) -> dict[str, Any]:
    """What a part has recorded so far: {} if nothing."""
    return _read(folder / RESULTS)["parts"].get(part, {})


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"parts": {}}


def _align(column: Column) -> str:
    return f"<{column.width}" if not column.format else f">{column.width}"


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null instead."""
    infinite = {k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)}
    return values | dict.fromkeys(infinite)
