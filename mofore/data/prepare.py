"""Prepare a dataset: list the videos, check the lists, decode every video once, write a manifest.

Videos are verified in worker processes that can be killed: native code may crash or hang. A video
that does not decode is left out of the manifest and listed with the reason in refused.csv.
"""

import csv
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

import joblib
from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from mofore.data.annotate import annotate
from mofore.data.decode import DecodeError, first_line
from mofore.data.manifest import Row, write_manifest
from mofore.data.sources import Source, examples, find_sources
from mofore.data.verify import VideoInfo, verify_video
from mofore.errors import UserError
from mofore.files import replace_file


@dataclass(frozen=True, slots=True)
class Prepared:
    """Result of `prepare`.

    manifest, refused_csv: paths. videos: number of rows. refused: (uri, reason) of each video left
    out. notes: sentences that the user should read.
    """

    manifest: str
    refused_csv: str
    videos: int
    refused: tuple[tuple[str, str], ...]
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
) -> Prepared:
    """Write OUT/manifest.parquet, rows sorted by uri, and OUT/refused.csv (`uri,reason`).

    root: folder of the videos; the first folder below it is a video's label, for evaluation only.
    listing: use these videos instead of all below `root`: a .csv or .tsv with a column uri or path
        and optionally label, group, split, offset, size (a member of a larger file); or a text file
        with one path per line, optionally followed by a label.
    splits, classes, groups: lists as in `mofore.data.annotate`; groups may also be "ucf101".
    workers: processes; None uses one per core. timeout: seconds allowed for one video.

    Uris below OUT are written relative to it, so that both can be moved together.

    Raises UserError, and writes nothing, if something is missing, if lists contradict each other or
    if no video decodes.
    """
    root, out = os.fspath(root), os.path.abspath(os.fspath(out))
    workers = joblib.cpu_count() if workers is None else workers
    if workers < 1 or timeout <= 0:
        raise UserError(
            f"workers={workers} must be at least 1, and timeout={timeout:g} seconds above 0."
        )
    _check_writable(out)
    sources = find_sources(root, listing)
    notes = annotate(sources, splits, classes, groups)
    rows, refused = _collect(sources, _verify_all(sources, workers, timeout), out)
    if not rows:
        reasons = examples([f"{uri}: {reason}" for uri, reason in refused])
        raise UserError(
            f"None of the {len(refused)} videos in {listing or root} decodes: {reasons}. "
            "Nothing was written."
        )
    os.makedirs(out, exist_ok=True)
    manifest, refused_csv = os.path.join(out, "manifest.parquet"), os.path.join(out, "refused.csv")
    _write_refused(refused_csv, refused)
    write_manifest(manifest, rows)
    notes += duplicate_notes(rows)
    return Prepared(manifest, refused_csv, len(rows), tuple(refused), tuple(notes))


def _check_writable(out: str) -> None:
    """Raise UserError now instead of after hours of decoding."""
    parent = out
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f"Cannot write to {out}: {parent} is not a folder. Give another folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write to {out}: no permission in {parent}. Give another folder.")


def _collect(
    sources: Sequence[Source], results: Sequence[VideoInfo | str], out: str
) -> tuple[list[Row], list[tuple[str, str]]]:
    """Rows of the verified videos and (uri, reason) of the others, both sorted by uri."""
    rows: list[Row] = []
    refused: list[tuple[str, str]] = []
    for source, result in zip(sources, results, strict=True):
        uri = source.uri.removeprefix(f"{out.rstrip('/')}/")
        if isinstance(result, str):
            refused.append((uri, result))
        else:
            annotations = source.label, source.group, source.split
            rows.append(Row(uri, source.offset, source.size, *result, *annotations))
    rows.sort(key=lambda row: (row.uri, row.offset or 0))
    refused.sort()
    return rows, refused


def _verify_all(sources: Sequence[Source], workers: int, timeout: float) -> list[VideoInfo | str]:
    """For each source its VideoInfo, or the reason why it was refused."""
    results: list[VideoInfo | str] = [""] * len(sources)
    queue = iter(range(len(sources)))
    pending: dict[Future, int] = {}
    workers = min(workers, len(sources))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(workers, initializer=_silence_stderr, context=context)
    try:
        with tqdm(total=len(sources), desc="decoding", unit="video", disable=None) as bar:
            while len(pending) < 4 * workers and (index := next(queue, None)) is not None:
                pending[_schedule(pool, sources[index], timeout)] = index
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    results[pending.pop(future)] = _result(future, timeout)
                    bar.update()
                    if (index := next(queue, None)) is not None:
                        pending[_schedule(pool, sources[index], timeout)] = index
    finally:  # on Ctrl-C too: no worker may outlive this function
        pool.stop()
        pool.join()
    return results


def _schedule(pool: ProcessPool, source: Source, timeout: float) -> Future:
    arguments = source.uri, source.offset, source.size
    return pool.schedule(verify_video, args=arguments, timeout=timeout)


def _result(future: Future, timeout: float) -> VideoInfo | str:
    try:
        return future.result()
    except DecodeError as error:
        return error.reason
    except TimeoutError:
        return f"timed out after {timeout:g} s"
    except ProcessExpired as error:
        return f"worker died (exit code {error.exitcode})"
    except Exception as error:  # one malformed file must not end the scan of a million others
        return f"{type(error).__name__}: {first_line(error)}"


def _silence_stderr() -> None:
    """decord's native log would disturb the progress bar; its errors arrive as exceptions."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _write_refused(path: str, refused: Sequence[tuple[str, str]]) -> None:
    # backslashreplace: a file name that is not UTF-8 is one of the reasons listed here.
    with (
        replace_file(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["uri", "reason"])
        writer.writerows(refused)


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
