"""From a folder of videos to a manifest: list, check the lists, decode every file once in parallel, write.

Files are scanned in worker processes that can be killed: native code may crash, or never come back. What does
not decode is left out and listed with its reason in refused.csv; nothing is put in its place.
"""

import csv
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from mofore.data.annotate import annotate
from mofore.data.decode import Undecodable, words
from mofore.data.manifest import Row, replacing, write_manifest
from mofore.data.probe import Facts, probe
from mofore.data.sources import Source, examples, find_sources
from mofore.errors import UserError


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare` made. `refused` holds (uri, reason); `notes` are sentences that the user should read."""

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
    """Writes OUT/manifest.parquet, rows sorted by uri, and OUT/refused.csv (`uri,reason`).

    root: folder with the videos; the first folder below it is a video's label, for evaluation only.
    listing: use these videos in place of all below `root`: a .csv or .tsv with a column uri or path and
        perhaps label, group, split, offset, size (a member of a larger file); or a path a line, perhaps with
        a label.
    splits, classes, groups: lists as in `mofore.data.annotate`; groups may also be "ucf101".
    workers: processes, by default one a core. timeout: seconds that one file may take.

    Uris below OUT are written relative to it, so that both move together. UserError, with nothing written,
    for anything missing, for lists that contradict each other and where no video decodes.
    """
    root, out = os.fspath(root), os.path.abspath(os.fspath(out))
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1 or timeout <= 0:
        raise UserError(f"workers ({workers}) must be 1 or more and timeout ({timeout:g} s) above 0.")
    _check_writable(out)
    sources = find_sources(root, listing)
    notes = annotate(sources, splits, classes, groups)
    results = _scan(sources, workers, timeout)
    refused = [
        (_name(source, out), result)
        for source, result in zip(sources, results, strict=True)
        if isinstance(result, str)
    ]
    rows = [
        Row(_name(source, out), source.offset, source.size, *result, source.label, source.group, source.split)
        for source, result in zip(sources, results, strict=True)
        if isinstance(result, Facts)
    ]
    if not rows:
        raise UserError(
            f"None of the {len(refused)} videos in {listing or root} decodes: "
            f"{examples([f'{uri}: {reason}' for uri, reason in refused])}. Nothing was written."
        )
    rows.sort(key=lambda row: (row.uri, row.offset or 0))
    refused.sort()
    os.makedirs(out, exist_ok=True)
    manifest, refused_csv = os.path.join(out, "manifest.parquet"), os.path.join(out, "refused.csv")
    _write_refused(refused_csv, refused)
    write_manifest(manifest, rows)
    return Prepared(manifest, refused_csv, len(rows), tuple(refused), (*notes, *_copies(rows)))


def _check_writable(out: str) -> None:
    """Before the scan, which may take hours."""
    above = out
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise UserError(f"Cannot write to {out}: {above} is not a folder. Give another one.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write to {out}: no permission in {above}. Give another folder.")


def _name(source: Source, out: str) -> str:
    return source.uri.removeprefix(f"{out.rstrip('/')}/")


def _scan(sources: Sequence[Source], workers: int, timeout: float) -> list[Facts | str]:
    """Facts, or the reason why there are none, for each source."""
    results: list[Facts | str] = [""] * len(sources)
    queue = iter(range(len(sources)))
    pending: dict[Future, int] = {}
    workers = min(workers, len(sources))
    pool = ProcessPool(workers, initializer=_silence, context=multiprocessing.get_context("spawn"))
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
    finally:  # also on Ctrl-C: no worker outlives this
        pool.stop()
        pool.join()
    return results


def _schedule(pool: ProcessPool, source: Source, timeout: float) -> Future:
    return pool.schedule(probe, args=(source.uri, source.offset, source.size), timeout=timeout)


def _result(future: Future, timeout: float) -> Facts | str:
    try:
        return future.result()
    except Undecodable as error:
        return error.reason
    except TimeoutError:
        return f"timed out after {timeout:g} s"
    except ProcessExpired as error:
        return f"worker died (exit code {error.exitcode})"
    except Exception as error:  # one strange file must not cost the scan of a million others; it is listed
        return f"{type(error).__name__}: {words(error)}"


def _silence() -> None:
    """decord's native log goes to stderr, into the progress bar; its reasons come back as exceptions."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _write_refused(path: str, refused: Sequence[tuple[str, str]]) -> None:
    # A name that is not UTF-8 is one of the reasons to be listed here.
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["uri", "reason"])
        writer.writerows(refused)


def _copies(rows: Sequence[Row]) -> list[str]:
    """Files with the same bytes, above all those in two splits: they make test numbers too good."""
    first: dict[str, Row] = {}
    same, leaks = [], []
    for row in rows:
        other = first.setdefault(row.digest, row)
        if other is not row:
            same.append(f"{row.uri} = {other.uri}")
            if other.split != row.split and None not in (other.split, row.split):
                leaks.append(same[-1])
    notes = [f"{len(same)} videos are copies of others: {examples(same)}."] if same else []
    return notes + ([f"{len(leaks)} copies are in another split: {examples(leaks)}."] if leaks else [])
