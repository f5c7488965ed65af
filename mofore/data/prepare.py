"""Prepare a dataset: list the videos, check the lists, decode every video once, write a manifest.

Videos are verified in worker processes that can be killed: native code may crash or hang. A video
that does not decode is left out of the manifest and listed with the reason in refused.csv. A video
of which some frames do not decode is used without them, and listed in damaged.csv.
"""

import csv
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import joblib

from mofore.data.annotate import annotate
from mofore.data.known_rows import KnownRows
from mofore.data.manifest import Access, Decoder, Row, write_manifest
from mofore.data.sources import Source, examples, find_sources
from mofore.data.storage import local_path
from mofore.data.torchcodec_reader import import_torchcodec
from mofore.data.verify import DECODERS, MAX_BAD_SHARE, Verified, verify_video
from mofore.data.verify_workers import verify_all
from mofore.errors import UserError
from mofore.files import replace_file


@dataclass(frozen=True, slots=True)
class Prepared:
    """Result of `prepare`.

    manifest, refused_csv, damaged_csv: paths. videos: number of rows. refused: (uri, reason) of
    each video left out. damaged: videos of which some frames do not decode. notes: sentences that
    the user should read.
    """

    manifest: str
    refused_csv: str
    damaged_csv: str
    videos: int
    refused: tuple[tuple[str, str], ...]
    damaged: int
    notes: tuple[str, ...]


def prepare(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    listing: str | None = None,
    splits: Sequence[str] = (),
    classes: str | None = None,
    groups: str | None = None,
    workers: int | None = None,
    timeout: float = 60.0,
    decoders: Sequence[Decoder] = DECODERS,
    max_bad_share: float = MAX_BAD_SHARE,
) -> Prepared:
    """Write OUT/manifest.parquet, rows sorted by uri, OUT/refused.csv (`uri,reason`), and
    OUT/damaged.csv (`uri,frames,bad_frames`).

    root: folder of the videos; folders below it are labels and splits, for evaluation only.
    listing: use the videos of this list, in one of the formats of `mofore.data.lists`.
    splits, classes, groups: lists as in `mofore.data.annotate`; groups may also be "ucf101".
    workers: processes; None uses one per core. timeout: seconds allowed for one video, and again
        for each 20 MB of it.
    decoders, max_bad_share: as in `mofore.data.verify`.

    Uris are written relative to `root`. If `root` lies below OUT, both can be moved together.

    Files that an earlier call has verified and that have not changed are not decoded again. What an
    interrupted call has verified is in OUT/unfinished.jsonl, for the next one.

    Raises UserError, and writes nothing, if something is missing, if lists contradict each other or
    if no video decodes.
    """
    root, out = os.fspath(root), os.path.abspath(os.fspath(out))
    workers = joblib.cpu_count() if workers is None else workers
    if workers < 1 or timeout <= 0:
        raise UserError(
            f"workers={workers} must be at least 1, and timeout={timeout:g} seconds above 0."
        )
    if not 0 <= max_bad_share < 1:
        raise UserError(f"max_bad_share={max_bad_share:g} must be at least 0 and below 1.")
    if Decoder.torchcodec in decoders:
        import_torchcodec()
    _check_writable(out)
    sources, notes = find_sources(root, listing)
    notes += annotate(sources, splits, classes, groups)
    check = functools.partial(verify_video, decoders=decoders, max_bad_share=max_bad_share)
    root = local_path(root)
    root = root.rstrip("/") if "://" in root else os.path.abspath(root)
    known = KnownRows(out, decoders, max_bad_share)
    unchanged, changed = _split_known(sources, known, root)
    results = verify_all(changed, check, workers, timeout)
    verified, refused = _collect(changed, results, known, root)
    rows = sorted(unchanged + verified, key=lambda row: (row.uri, row.offset or 0))
    if not rows:
        reasons = examples([f"{uri}: {reason}" for uri, reason in refused])
        raise UserError(
            f"None of the {len(refused)} videos in {listing or root} decodes: {reasons}. "
            "Nothing was written."
        )
    if unchanged:
        notes.append(f"{len(unchanged)} videos were verified before and have not changed.")
    notes += access_notes(rows) + duplicate_notes(rows)
    prepared = _write(out, root, rows, refused, notes)
    known.finish()
    return prepared


def _write(
    out: str, root: str, rows: list[Row], refused: list[tuple[str, str]], notes: list[str]
) -> Prepared:
    os.makedirs(out, exist_ok=True)
    names = ("manifest.parquet", "refused.csv", "damaged.csv")
    manifest, refused_csv, damaged_csv = (os.path.join(out, name) for name in names)
    damaged = [row for row in rows if row.bad_frames]
    _write_csv(refused_csv, ("uri", "reason"), refused)
    lines = [(row.uri, row.frames, row.bad_frames) for row in damaged]
    _write_csv(damaged_csv, ("uri", "frames", "bad_frames"), lines)
    write_manifest(manifest, rows, _root_in_manifest(root, out))
    counts = tuple(refused), len(damaged), tuple(notes)
    return Prepared(manifest, refused_csv, damaged_csv, len(rows), *counts)


def _root_in_manifest(root: str, out: str) -> str:
    """Relative to the folder of the manifest if it is that folder or below."""
    inside = "://" not in root and os.path.commonpath([root, out]) == out
    return os.path.relpath(root, out) if inside and root != out else "" if inside else root


def _check_writable(out: str) -> None:
    """Raise UserError now instead of after hours of decoding."""
    parent = out
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f"Cannot write to {out}: {parent} is not a folder. Give another folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write to {out}: no permission in {parent}. Give another folder.")


def _split_known(
    sources: Sequence[Source], known: KnownRows, root: str
) -> tuple[list[Row], list[Source]]:
    """Rows of the videos that have not changed since they were verified, and the other videos."""
    rows, changed = [], []
    for source in sources:
        row = known.find(source, _relative(source.uri, root))
        if row:
            rows.append(row)
        else:
            changed.append(source)
    return rows, changed


def _collect(
    sources: Sequence[Source],
    results: Iterator[tuple[int, Verified | str]],
    known: KnownRows,
    root: str,
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Rows of the verified videos, and (uri, reason) of the others sorted by uri."""
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    for number, result in results:
        source = sources[number]
        if isinstance(result, str):
            refused.append((source.uri, result))
        else:
            annotations = dict(label=source.label, group=source.group, split=source.split)
            rows.append(result.row(_relative(source.uri, root), **annotations))
            known.append(rows[-1])
    return rows, sorted(refused)


def _relative(uri: str, root: str) -> str:
    return uri.removeprefix(f"{root.rstrip('/')}/")


def _write_csv(path: str, header: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    # backslashreplace: a file name that is not UTF-8 is one of the reasons listed here.
    with (
        replace_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def access_notes(rows: Sequence[Row]) -> list[str]:
    """A note on videos in which no decoder seeks to the right frames."""
    slow = [row.uri for row in rows if row.access is Access.order]
    if not slow:
        return []
    return [
        f"{len(slow)} videos are decoded from their first frame for every sample, as seeking in "
        f"them returns other frames than FFmpeg shows: {examples(slow)}. Reading them is slow if "
        "they are long."
    ]


def duplicate_notes(rows: Sequence[Row]) -> list[str]:
    """Notes on files with equal bytes. Duplicates in two splits inflate test scores."""
    first: dict[str, Row] = {}
    duplicates, leaks = [], []
    for row in rows:
        other = first.setdefault(row.digest, row)
        if other is not row:
            duplicates.append(f"{row.uri} = {other.uri}")
            if other.split != row.split and None not in (other.split, row.split):
                leaks.append(duplicates[-1])
    notes = []
    if duplicates:
        notes.append(f"{len(duplicates)} videos are duplicates of others: {examples(duplicates)}.")
    if leaks:
        notes.append(
            f"{len(leaks)} duplicates are in another split than the original, which inflates test "
            f"scores: {examples(leaks)}."
        )
    return notes
