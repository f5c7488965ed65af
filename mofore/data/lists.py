"""Lists of videos in the common formats, as `Entry`s. Errors name the file and the line.

The format follows from the looks of a list:

- a JSON list of objects with `id`: Something-Something v2
- a first line with a column `youtube_id`: a Kinetics CSV
- a first line with a column `uri` or `path`: a table, separated by commas or tabs
- else one `path`, `path label` or `path frames label` per line, separated by blanks or commas
"""

import csv
import re
from collections.abc import Sequence

from mofore.data.entries import Entry, numbered_lines
from mofore.data.folders import SUFFIXES
from mofore.data.tables import columns_of, read_json, read_kinetics, read_table
from mofore.errors import UserError

# The last video suffix ends the path: file names may contain spaces, dots and brackets.
LINE = re.compile(
    rf"(?P<path>.+(?:{'|'.join(map(re.escape, SUFFIXES))}))"
    r"(?:(?P<separator>[ \t]*,[ \t]*|[ \t]+)(?P<rest>.*))?",
    re.IGNORECASE,
)


def read_list(path: str) -> tuple[list[Entry], list[str]]:
    """The entries of a list, and notes on how it was read (sentences).

    Blanks around values are dropped. Raises UserError if the file cannot be read, or for a line
    that does not fit the format.
    """
    lines = numbered_lines(path)
    if not lines:
        return [], []
    first = lines[0][1]
    if re.match(r"\[\s*(\{|$)", first) or path.lower().endswith(".json"):
        return read_json(path), []
    delimiter = "\t" if "\t" in first or path.lower().endswith(".tsv") else ","
    columns = columns_of(first, delimiter)
    if "youtube_id" in columns:
        return read_kinetics(path, delimiter), []
    if "path" in columns:
        return read_table(path, delimiter), []
    if path.lower().endswith((".csv", ".tsv")) and not LINE.fullmatch(
        first.split('",')[0].strip('"')
    ):
        raise UserError(f"{path} has no column uri or path; its first line is {first!r}.")
    return _read_lines(lines, path)


def _read_lines(lines: Sequence[tuple[int, str]], path: str) -> tuple[list[Entry], list[str]]:
    entries, numbers = [], []
    for number, line in lines:
        name, rest = split_line(line, f"{path}, line {number}")
        entries.append(Entry(f"line {number}", name, label=rest))
        words = re.split(r"[ \t]*,[ \t]*|[ \t]+", rest) if rest else []
        whole = all(re.fullmatch(r"[+-]?\d+", word) for word in words)
        numbers.append([int(word) for word in words] if whole else [])
    notes = _choose_labels(entries, numbers, path)
    labels = [entry.label for entry in entries if entry.label is not None]
    if labels and all(re.match(r"\d+[ \t]+\D", label) for label in labels):
        notes.append(
            f"The labels of {path} begin with a number: {labels[0]!r}. If it is a number of "
            "frames, remove it."
        )
    return entries, notes


def _choose_labels(entries: list[Entry], numbers: list[list[int]], path: str) -> list[str]:
    """Set the labels of lines with several numbers; returns notes."""
    width = max(map(len, numbers))
    if width < 2:
        return []
    for entry, row in zip(entries, numbers, strict=True):
        if len(row) != width:
            raise UserError(
                f"{path}, {entry.where}: {width} numbers must follow the path, as on other "
                "lines. Write `path label` or `path frames label` on every line."
            )
    whole = all(row[:2] == [0, -1] for row in numbers)  # from frame 0 to the end, as in VideoMAE
    frames = width == 2 and all(row[0] > 0 and row[1] >= 0 for row in numbers)
    if not frames and not (whole and width <= 3):
        raise UserError(
            f"{path}, {entries[0].where}: {width} numbers follow the path, and none is "
            "certainly the label. Write `path label`, or `path frames label`."
        )
    for entry, row in zip(entries, numbers, strict=True):
        entry.label = None if whole and width == 2 else str(row[-1])
    form = "frames label" if frames else "first last label" if width == 3 else "first last"
    return [f"{path} was read as `path {form}`; only path and label are used."]


def split_line(line: str, where: str) -> tuple[str, str | None]:
    """`path` and what follows it, or None; the path may contain spaces.

    `where` names the line in a UserError for a label with a comma that is not quoted.
    """
    if line.startswith('"'):
        name, *values = next(csv.reader([line], skipinitialspace=True))
        rest, separator = ",".join(values), "," if len(values) > 1 else ""
    elif match := LINE.fullmatch(line):
        name, separator, rest = match["path"], (match["separator"] or "").strip(), match["rest"]
    else:
        return line, None
    rest = (rest or "").strip(" \t,")
    if rest.startswith('"'):
        values = next(csv.reader([rest], skipinitialspace=True))
        rest, separator = ",".join(values), separator if len(values) > 1 else ""
    if separator and "," in rest and not re.fullmatch(r"[-+\d, \t]+", rest):
        raise UserError(f"{where}: {rest!r} has a comma. Quote it, if it is one label.")
    return name.strip(), rest.strip() or None
