"""Lists with named columns: tables, Kinetics CSVs, and the JSON of Something-Something v2."""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mofore.data.entries import Entry, read_text, split_of
from mofore.errors import UserError

NAMES = {"uri": "path", "class": "label"}  # second names of columns
TABLE = ("path", "label", "group", "split", "offset", "size")
KINETICS = ("youtube_id", "time_start", "time_end", "label", "split", "is_cc")


def columns_of(header: str, delimiter: str) -> list[str]:
    """The columns that a line names, if it is a header: lower case, `uri` and `class` renamed."""
    return [_column(name) for name in next(csv.reader([header], delimiter=delimiter))]


def read_table(path: str, delimiter: str) -> list[Entry]:
    """Entries of a table with the columns of TABLE. Raises UserError for a malformed line."""
    rows = _rows(path, delimiter, TABLE)
    return [_table_entry(row, f"line {line}", path) for line, row in rows]


def read_kinetics(path: str, delimiter: str) -> list[Entry]:
    """Entries of a CSV of Kinetics. Raises UserError for a malformed line."""
    rows = _rows(path, delimiter, KINETICS)
    return [_kinetics_entry(row, f"line {line}", path) for line, row in rows]


def _column(name: str) -> str:
    name = name.strip().lower()
    return NAMES.get(name, name)


def _rows(path: str, delimiter: str, known: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, column -> value without blanks). Raises UserError for a malformed line."""
    filled = _filled_rows(path, delimiter)
    first, header = next(filled)
    columns = [_column(name) for name in header]
    for name, column in zip(header, columns, strict=True):
        if column not in known:
            raise UserError(
                f"{path}, line {first}: unknown column {name!r}. Remove it, or rename it to one "
                f"of {', '.join(known)}."
            )
        if columns.count(column) > 1:
            raise UserError(
                f"{path}, line {first}: two columns are the {column}: {', '.join(header)}. "
                "Remove one of them."
            )
    for line, row in filled:
        if len(row) != len(columns):
            raise UserError(
                f"{path}, line {line}: {len(row)} values for {len(columns)} columns: "
                f"{delimiter.join(row)!r}. Quote a value that contains a comma."
            )
        yield line, dict(zip(columns, row, strict=True))


def _filled_rows(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line, values without blanks) of each line that has a value."""
    text = io.StringIO(read_text(path))
    reader = csv.reader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if any("\n" in value for value in row):
                raise csv.Error("a quoted value has a line end")
            if any(value.strip() for value in row):
                yield reader.line_num, [value.strip() for value in row]
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}. Correct the quotes: a value in quotes ends "
            'on its line, and a quote in it is written "".'
        ) from None


def _table_entry(row: dict[str, str], where: str, listing: str) -> Entry:
    if not row["path"]:
        raise UserError(f"{listing}, {where}: the column uri or path is empty.")
    entry = Entry(
        where,
        row["path"],
        label=row.get("label") or None,
        group=row.get("group") or None,
    )
    if split := row.get("split"):
        entry.split = split_of(split) or split
    if row.get("offset") or row.get("size"):
        entry.offset, entry.size = (_bytes(row.get(name, "")) for name in ("offset", "size"))
        if entry.offset is None or not entry.size:
            raise UserError(
                f"{listing}, {where}: {entry.path} needs offset and size, in bytes, as two "
                "whole numbers, size above 0."
            )
    return entry


def _bytes(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d+", text) else None


def _kinetics_entry(row: dict[str, str], where: str, listing: str) -> Entry:
    """Files are named ID_START_END, seconds with six digits, or ID."""
    name = row["youtube_id"]
    try:
        times = [int(float(row[column])) for column in ("time_start", "time_end")]
    except (KeyError, ValueError):
        raise UserError(
            f"{listing}, {where}: youtube_id needs time_start and time_end, in seconds."
        ) from None
    if not name:
        raise UserError(f"{listing}, {where}: the column youtube_id is empty.")
    split = row.get("split") or None
    return Entry(
        where,
        stems=(f"{name}_{times[0]:06}_{times[1]:06}", name),
        label=row.get("label") or None,
        split=split and (split_of(split) or split),
    )


def read_json(path: str) -> list[Entry]:
    """Entries of a list of Something-Something v2.

    Labels are templates without brackets, or `label` if no object has a template. Raises UserError
    if the file is something else.
    """
    try:
        rows = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}). Correct it, or rename a text list."
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
        raise UserError(
            f"{path} is not a list of objects with an id, as in Something-Something v2. "
            "Give a CSV with the columns path and label instead."
        )
    source = "template" if any("template" in row for row in rows) else "label"
    return [
        Entry(f"object {number}", stems=(str(row["id"]).strip(),), label=_template(row.get(source)))
        for number, row in enumerate(rows, start=1)
    ]


def _template(value: Any) -> str | None:
    return re.sub(r"[\[\]]", "", str(value or "")).strip() or None
