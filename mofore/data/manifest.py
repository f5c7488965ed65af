"""The manifest: one Parquet file per dataset, a row a video, in the order that `Batch.rows` counts.

`prepare` writes `Row`s; training reads `Video`s, which hold no label: `Manifest` never loads the columns
label, group and split. Evaluation reads those on their own with `read_annotations`.
"""

import contextlib
import hashlib
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mofore.errors import UserError

FORMAT = "1"
VERSION_KEY = b"mofore.manifest"
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        pa.field("split", pa.string()),
    ],
    metadata={VERSION_KEY: FORMAT.encode()},
)
ANNOTATIONS = ["label", "group", "split"]
VIDEO_COLUMNS = ["uri", "offset", "size", "frames", "fps", "width", "height", "duration"]


@dataclass(frozen=True, slots=True)
class Video:
    """What training may know of a video.

    `uri` is anything fsspec opens; `offset, size` (bytes) where the video is a member of a larger file.
    `fps` is 1 / the mean distance of two frames, `duration` is frames / fps, in seconds.
    """

    uri: str
    offset: int | None
    size: int | None
    frames: int
    fps: float
    width: int
    height: int
    duration: float


@dataclass(frozen=True, slots=True)
class Row(Video):
    """A video as it is written: with the SHA-256 of its bytes (hex) and, for evaluation, annotations."""

    digest: str
    label: str | None = None
    group: str | None = None
    split: str | None = None


class Annotations(NamedTuple):
    """What only evaluation may know, each aligned with the manifest's rows; None where nothing is known."""

    labels: list[str | None]
    groups: list[str | None]
    splits: list[str | None]


class Manifest(Sequence[Video]):
    """The rows of a manifest in compact form: a million of them take about 100 MB, also in each worker.

    `digest` (SHA-256, hex) covers what training reads and the bytes of every file, in order. It does not
    cover the annotations: a change of folds leaves it as it is.
    """

    def __init__(self, path: str, table: pa.Table, digest: str):
        self.path = path
        self.digest = digest
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Video:  # type: ignore[override]  # no slices: nobody needs them
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {row}")
        values = {name: self._table.column(name)[row].as_py() for name in VIDEO_COLUMNS}
        return Video(**values | {"uri": _resolve(values["uri"], self.path)})

    def column(self, name: str) -> np.ndarray:
        """One of the numeric columns frames, fps, width, height, duration: i64 or f64 [rows]."""
        return self._table.column(name).to_numpy()


def _resolve(uri: str, manifest: str) -> str:
    """A relative uri counts from the manifest's own folder, so that both can be moved together."""
    if "://" in uri or uri.startswith("/"):
        return uri
    return posixpath.join(posixpath.dirname(manifest), uri)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads all but the annotations. UserError if there is no manifest at `path` or it holds no video."""
    path = os.fspath(path)
    table = _read(path, [*VIDEO_COLUMNS, "digest"])
    if not len(table):
        raise UserError(f"{path} lists no video. Make it again with `mofore prepare`.")
    return Manifest(path, table.drop_columns("digest").combine_chunks(), _digest(table))


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """For evaluation only: labels, groups and splits. UserError as in `read_manifest`."""
    table = _read(os.fspath(path), ANNOTATIONS)
    return Annotations(*(table.column(name).to_pylist() for name in ANNOTATIONS))


def read_splits(path: str | os.PathLike[str]) -> list[str | None]:
    """The split of every row, alone: what pretraining may know to leave the test videos out."""
    return _read(os.fspath(path), ["split"]).column("split").to_pylist()


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
    """Writes `rows` in their order to a local file; the same rows give the same bytes."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA)
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a temporary name beside `path`; what was written there takes its place at the end, or goes."""
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _read(path: str, columns: list[str]) -> pa.Table:
    again = "Make one with `mofore prepare ROOT --out DIR`."
    try:
        with fsspec.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            version = (schema.metadata or {}).get(VERSION_KEY, FORMAT.encode()).decode()
            if version != FORMAT:
                raise UserError(f"{path} has manifest format {version}, this MoFore reads {FORMAT}. {again}")
            missing = [name for name in SCHEMA.names if name not in schema.names]
            if missing:
                raise UserError(f"{path} is not a manifest: it has no column {', '.join(missing)}. {again}")
            table = parquet.read(columns=columns).select(columns)
    except FileNotFoundError:
        raise UserError(f"There is no manifest at {path}. {again}") from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder. Name the file in it: {path.rstrip('/')}/manifest.parquet"
        ) from None
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet file ({str(error).splitlines()[0]}). {again}") from None
    wanted = pa.schema([SCHEMA.field(name) for name in columns])
    for field in wanted:
        if not field.nullable and table.column(field.name).null_count:
            raise UserError(f"{path} has rows without {field.name}. {again}")
    try:
        return table.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path} has a column of another type: {error}. {again}") from None


def _digest(table: pa.Table) -> str:
    """SHA-256 over the values alone, column by column: how Parquet chunks or packs them does not matter."""
    sha = hashlib.sha256()
    for field in table.schema:
        column = table.column(field.name)
        sha.update(field.name.encode())
        if pa.types.is_string(field.type):
            sha.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
            sha.update("".join(column.to_pylist()).encode())
        else:
            sha.update(pc.is_null(column).to_numpy().tobytes())
            kind = "<f8" if pa.types.is_floating(field.type) else "<i8"
            sha.update(column.fill_null(0).to_numpy().astype(kind).tobytes())
    return sha.hexdigest()
