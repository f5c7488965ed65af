"""Find the videos of a folder or a list, as `Source`s.

Opens lists, but no video. Errors in lists are reported before hours of decoding begin.
"""

import csv
import itertools
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
# The last video suffix ends the path: file names may contain spaces, dots and brackets.
LINE = re.compile(
    rf"(?P<path>.+(?:{'|'.join(map(re.escape, SUFFIXES))}))(?:[ \t]+(?P<label>\S.*?))?[ \t]*",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Source:
    """A video to verify, and its annotations.

    uri: a path or URL. key: its name in lists, the path relative to the folder of videos, with
    forward slashes. offset, size: bytes, if the video is a member of a larger file.
    """

    uri: str
    key: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    offset: int | None = None
    size: int | None = None


def find_sources(root: str, listing: str | None = None) -> list[Source]:
    """The videos below `root`, or those in the list `listing`, sorted by uri.

    The label is the first folder below `root`, unless the list gives one. Links to folders are
    followed; hidden files are skipped.

    Raises UserError for a missing root or list, an unreadable folder, no video, and a video listed
    twice.
    """
    if "://" not in root and not os.path.isdir(root):
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"{root} {what}. Give the folder that holds the videos.")
    root = root.rstrip("/") if "://" in root else os.path.abspath(root)
    if listing is not None:
        sources = _listed(root, listing)
    else:
        files = _walk_remote(root) if "://" in root else _walk(root)
        sources = [_source(root, path) for path in files if path.lower().endswith(SUFFIXES)]
    if not sources:
        where = listing or root
        raise UserError(
            f"There is no video in {where}. Supported file names end in {' '.join(SUFFIXES)}."
        )
    sources.sort(key=lambda source: (source.uri, source.offset or 0))
    for source, following in itertools.pairwise(sources):
        if (source.uri, source.offset) == (following.uri, following.offset):
            raise UserError(f"{listing} lists {source.key} twice. Remove one of the two lines.")
    return sources


def _source(root: str, uri: str) -> Source:
    inside = uri.startswith(f"{root.rstrip('/')}/")
    key = uri[len(root.rstrip("/")) + 1 :] if inside else uri
    return Source(uri, key, label=key.split("/")[0] if inside and "/" in key else None)


def _walk(root: str) -> Iterator[str]:
    def raise_user_error(error: OSError) -> None:
        raise UserError(
            f"Cannot list the folder {error.filename}: {error.strerror}. Make it readable."
        )

    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=raise_user_error):
        if (real := os.path.realpath(folder)) in seen:  # a link to a parent folder is a loop
            subfolders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


def _walk_remote(root: str) -> Iterator[str]:
    system, path = fsspec.url_to_fs(root)
    for file in system.find(path):
        yield f"{root}{file[len(path.rstrip('/')) :]}"


def _listed(root: str, listing: str) -> list[Source]:
    table = listing.lower().endswith((".csv", ".tsv"))
    sources = []
    for row in _read_table(listing) if table else map(split_line, read_lines(listing)):
        source = _source(root, _locate(row["path"] or "", root, listing))
        source.label = row.get("label") or source.label
        source.group, source.split = row.get("group"), row.get("split")
        if row.get("offset") is not None:
            source.offset, source.size = _byte_range(row, listing)
            source.key = f"{source.key}[{source.offset}]"
        sources.append(source)
    return sources


def _byte_range(row: dict[str, str | None], listing: str) -> tuple[int, int]:
    try:
        offset, size = int(row["offset"] or ""), int(row["size"] or "")
    except (KeyError, ValueError):
        raise UserError(
            f"{listing}: {row['path']} needs offset and size, in bytes, as two whole numbers."
        ) from None
    return offset, size


def _read_table(listing: str) -> Iterator[dict[str, str | None]]:
    lines = read_lines(listing)
    reader = csv.DictReader(lines, delimiter="\t" if listing.lower().endswith(".tsv") else ",")
    columns = reader.fieldnames or []
    name = next((name for name in ("uri", "path") if name in columns), None)
    if name is None:
        raise UserError(
            f"{listing} has no column uri or path; its first line is {','.join(columns)!r}."
        )
    for row in reader:
        if not row[name]:
            raise UserError(f"{listing}, line {reader.line_num}: the column {name} is empty.")
        yield {"path": row[name]} | {
            key: value or None for key, value in row.items() if key != name
        }


def _locate(entry: str, root: str, listing: str) -> str:
    """A relative entry is relative to `root` or, if there is no such file, to the list's folder."""
    if "://" in entry or os.path.isabs(entry):
        return entry
    if "://" in root:
        return f"{root}/{entry}"
    beside = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(listing)), entry))
    below = os.path.normpath(os.path.join(root, entry))
    return beside if os.path.exists(beside) and not os.path.exists(below) else below


def split_line(line: str) -> dict[str, str | None]:
    """Parse `path` or `path label`, where the path may contain spaces: keys path and label."""
    match = LINE.fullmatch(line)
    return match.groupdict() if match else {"path": line, "label": None}


def read_lines(path: str) -> list[str]:
    """Lines of a text file without line ends (LF or CRLF), blank lines dropped.

    Raises UserError if the file cannot be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise UserError(f"Cannot read the list {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8. Give a list of videos.") from None
    return [line for line in lines if line.strip()]


def examples(items: Sequence[str]) -> str:
    """The first three items and the number of others: 'a, b, c and 7 more'."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
