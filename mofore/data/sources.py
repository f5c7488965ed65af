"""Which videos there are: a folder, or a list of paths, becomes `Source`s with what is known of each by name.

Nothing is opened here but lists. Every mistake in them is found before hours of decoding begin.
"""

import csv
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec

from mofore.errors import UserError

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".vob"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".ogv", ".3gp", ".3g2"),
)
# The last video suffix ends the path: names hold spaces, dots and brackets of their own.
LINE = re.compile(
    rf"(?P<path>.+(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:[ \t]+(?P<label>\S.*?))?[ \t]*", re.IGNORECASE
)


@dataclass(slots=True)
class Source:
    """A video to be scanned. `key` is how lists name it: its path below ROOT, with forward slashes."""

    uri: str
    key: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    offset: int | None = None
    size: int | None = None


def find_sources(root: str, listing: str | None = None) -> list[Source]:
    """Videos below `root`, or those that `listing` names, sorted by uri.

    The label is the first folder below `root`, unless the list gives one. Links to folders are followed;
    hidden files are not videos. UserError for a missing root or list, an unreadable folder, no video, a
    video listed twice.
    """
    if "://" not in root and not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"ROOT {root} {what}. Give the folder that holds the videos.")
    root = root.rstrip("/") if "://" in root else os.path.abspath(root)
    if listing is not None:
        sources = _listed(root, listing)
    else:
        files = _walk_remote(root) if "://" in root else _walk(root)
        sources = [_source(root, path) for path in files if path.lower().endswith(SUFFIXES)]
    if not sources:
        where = listing or root
        raise UserError(f"There is no video in {where}. Looked for files ending in {' '.join(SUFFIXES)}.")
    sources.sort(key=lambda source: (source.uri, source.offset or 0))
    for one, two in zip(sources, sources[1:], strict=False):
        if (one.uri, one.offset) == (two.uri, two.offset):
            raise UserError(f"{listing} names {one.key} twice. Remove one of the two lines.")
    return sources


def _source(root: str, uri: str) -> Source:
    inside = uri.startswith(f"{root.rstrip('/')}/")
    key = uri[len(root.rstrip("/")) + 1 :] if inside else uri
    return Source(uri, key, label=key.split("/")[0] if inside and "/" in key else None)


def _walk(root: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"Cannot list the folder {error.filename}: {error.strerror}. Make it readable.")

    seen = set()
    for folder, below, files in os.walk(root, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(folder)) in seen:  # a link back up would never end
            below.clear()
            continue
        seen.add(real)
        yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


def _walk_remote(root: str) -> Iterator[str]:
    system, path = fsspec.url_to_fs(root)
    for found in system.find(path):
        yield f"{root}{found[len(path.rstrip('/')) :]}"


def _listed(root: str, listing: str) -> list[Source]:
    table = listing.lower().endswith((".csv", ".tsv"))
    sources = []
    for row in _read_table(listing) if table else map(split_line, read_lines(listing)):
        source = _source(root, _locate(row["path"] or "", root, listing))
        source.label = row.get("label") or source.label
        source.group, source.split = row.get("group"), row.get("split")
        if row.get("offset") is not None:
            source.offset, source.size = _bytes(row, listing)
            source.key = f"{source.key}[{source.offset}]"
        sources.append(source)
    return sources


def _bytes(row: dict[str, str | None], listing: str) -> tuple[int, int]:
    try:
        offset, size = int(row["offset"] or ""), int(row["size"] or "")
    except (KeyError, ValueError):
        raise UserError(
            f"{listing}: {row['path']} needs offset and size as two whole numbers of bytes."
        ) from None
    return offset, size


def _read_table(listing: str) -> Iterator[dict[str, str | None]]:
    lines = read_lines(listing)
    reader = csv.DictReader(lines, delimiter="\t" if listing.lower().endswith(".tsv") else ",")
    columns = reader.fieldnames or []
    name = next((name for name in ("uri", "path") if name in columns), None)
    if name is None:
        raise UserError(f"{listing} has no column uri or path; its first line reads {','.join(columns)!r}.")
    for row in reader:
        if not row[name]:
            raise UserError(f"{listing}, line {reader.line_num}: the column {name} is empty.")
        yield {"path": row[name]} | {key: value or None for key, value in row.items() if key != name}


def _locate(entry: str, root: str, listing: str) -> str:
    """Relative entries count from ROOT, or, if the file is not there, from the list's own folder."""
    if "://" in entry or os.path.isabs(entry):
        return entry
    if "://" in root:
        return f"{root}/{entry}"
    beside = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(listing)), entry))
    below = os.path.normpath(os.path.join(root, entry))
    return beside if os.path.exists(beside) and not os.path.exists(below) else below


def split_line(line: str) -> dict[str, str | None]:
    """`path` or `path label`, the path with any spaces of its own."""
    match = LINE.fullmatch(line)
    return match.groupdict() if match else {"path": line, "label": None}


def read_lines(path: str) -> list[str]:
    """Lines without ends (Windows' too) and without blank ones. UserError if there is no such text file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise UserError(f"Cannot read the list {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8. Is it really a list?") from None
    return [line for line in lines if line.strip()]


def examples(items: Sequence[str]) -> str:
    """The first three, and how many more: 'a, b, c and 7 more'."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
