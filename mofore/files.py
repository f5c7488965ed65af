"""Files that are whole or absent: atomic writes, and JSON lines that tolerate a torn last line."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mofore.errors import UserError


@contextlib.contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed on an error."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], document: Any) -> None:
    """Write one JSON document atomically, indented. ValueError for NaN or infinity."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False))


def append_jsonl(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append one line and flush it to the disk."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_jsonl(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Replace the whole file atomically."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def read_jsonl(path: str | os.PathLike[str], last: int | None = None) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, oldest first; [] where there is no file.

    A last line without a line end is left out: a running or killed process may have torn it. `last`
    returns only that many records, read from the end of the file.

    Raises UserError, naming file and line, where any other line is not JSON.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with path.open("rb") as file:
        lines = file.read().split(b"\n")[:-1] if last is None else _last_lines(file, last)
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            where = f"line {number}" if last is None else f"one of the last {last} lines"
            raise UserError(f"{path}, {where}, is not JSON ({error}). Remove that line.") from None
    return records


def _last_lines(file: Any, count: int) -> list[bytes]:
    """The last `count` whole lines, without reading the file from its start."""
    size, block = file.seek(0, os.SEEK_END), 1 << 16
    while True:
        begin = max(0, size - block)
        file.seek(begin)
        lines = file.read(size - begin).split(b"\n")[1 if begin else 0 : -1]
        if begin == 0 or len(lines) >= count:
            return lines[-count:]
        block *= 2
