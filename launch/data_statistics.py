"""What a manifest and its refused.csv say of a dataset: totals, charts, and counts of values."""

import csv
import io
import posixpath
import re
from collections import Counter
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mofore.evaluation.charts import Chart, histogram

COLUMNS = (
    *("frames", "fps", "width", "height", "duration", "size"),
    *("decoder", "access", "bad_frames", "label", "split"),
)
LISTED = 12  # values of a table


class Count(NamedTuple):
    """A value that some videos have; example: the uri of one, if it is of interest."""

    value: str
    videos: int
    example: str = ""


class Counts(NamedTuple):
    """How many of `videos` have each value, the commonest first; `unlisted` values are left out."""

    title: str
    header: str  # of the values
    videos: int
    counts: list[Count]
    unlisted: int


def read_columns(path: str) -> pa.Table:
    """Those of COLUMNS that the manifest has; `read_manifest` has found that it is one."""
    with fsspec.open(path, "rb") as file:
        parquet = pq.ParquetFile(file)
        return parquet.read([name for name in COLUMNS if name in parquet.schema_arrow.names])


def describe_totals(table: pa.Table) -> list[tuple[str, str]]:
    """(what, how much) of the whole dataset."""
    totals = [
        ("Videos", f"{len(table):,}"),
        ("Duration", _scaled(_total(table, "duration") / 60, 60, "minutes", "hours")),
        ("Frames", f"{_total(table, 'frames'):,}"),
    ]
    if "size" in table.column_names:
        totals.append(("Size", _scaled(_total(table, "size") / 1e6, 1000, "MB", "GB")))
    if "bad_frames" in table.column_names:
        damaged = pc.sum(pc.greater(table["bad_frames"], 0)).as_py()
        bad = f"{_total(table, 'bad_frames'):,} in {damaged:,} videos"
        totals.append(("Frames that do not decode", bad if damaged else "none"))
    return totals


def draw_histograms(table: pa.Table) -> list[Chart]:
    """Durations, short sides, bit rates."""
    column = {name: table[name].to_numpy() for name in table.column_names if name in NUMBERS}
    sides = np.minimum(column["width"], column["height"])
    charts = [
        histogram("Durations", column["duration"], "seconds"),
        histogram("Short sides", sides, "pixels"),
    ]
    if "size" in column:
        rates = 8e-6 * column["size"] / column["duration"]
        known = rates[np.isfinite(rates)]  # a member of a larger file may have no size
        charts += [histogram("Bit rates", known, "Mbit/s")] if len(known) else []
    return charts


NUMBERS = ("width", "height", "duration", "size")


def count_values(table: pa.Table) -> list[Counts]:
    """Tables of frame sizes, rates, splits, labels, decoders; without those that say nothing."""
    rounded = pa.table({"fps": pc.round(table["fps"], 2)})
    tables = [
        _count("Frame sizes", "width x height", table.select(["width", "height"]), " x "),
        _count("Frame rates", "frames per second", rounded),
    ]
    for title, header, names in (
        ("Splits", "split", ["split"]),
        ("Labels", "label", ["label"]),
        ("Decoders", "decoder, access", ["decoder", "access"]),
    ):
        columns = table.select([name for name in names if name in table.column_names])
        if any(column.null_count < len(column) for column in columns.columns):
            tables.append(_count(title, header, columns, ", "))
    return tables


def count_refused(manifest: str) -> Counts | None:
    """Reasons in refused.csv beside the manifest; None without the file.

    Reasons that differ in numbers only are counted together, with a number in the place of each.
    """
    path = posixpath.join(posixpath.dirname(manifest), "refused.csv")
    try:
        with fsspec.open(path, "rb") as file:
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return None
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for row in csv.DictReader(io.StringIO(text)):
        reason = re.sub(r"\d+(\.\d+)?", "N", row.get("reason") or "no reason")
        counts[reason] += 1
        examples.setdefault(reason, row.get("uri") or "")
    listed = [Count(reason, n, examples[reason]) for reason, n in counts.most_common(LISTED)]
    return Counts("Refused", "reason", counts.total(), listed, len(counts) - len(listed))


def _total(table: pa.Table, name: str) -> Any:
    return pc.sum(table[name]).as_py() or 0


def _scaled(number: float, factor: int, unit: str, larger: str) -> str:
    """A number with its unit, or with the `factor` times larger one."""
    if number < factor:
        return f"{number:.1f} {unit}"
    return f"{number / factor:,.1f} {larger}"


def _count(title: str, header: str, columns: pa.Table, separator: str = "") -> Counts:
    """Combinations of the values of the columns."""
    names = columns.column_names
    groups = columns.group_by(names).aggregate([([], "count_all")])
    order = [("count_all", "descending"), *((name, "ascending") for name in names)]
    listed = [
        Count(separator.join(_text(row[name]) for name in names), row["count_all"])
        for row in groups.sort_by(order).slice(0, LISTED).to_pylist()
    ]
    return Counts(title, header, len(columns), listed, len(groups) - len(listed))


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
