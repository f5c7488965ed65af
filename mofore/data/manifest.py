"""The manifest: one Parquet file per dataset, one row per video; `Batch.rows` indexes its rows.

Uris count from the folder of the videos, ROOT, which is stored once: the same videos in another
place have the same rows, and the same digest. `data.root` names another place.

`prepare` writes each video as a `Row`. Training reads it as a `Video`, which has no annotations:
`Manifest` never loads the columns label, group and split. Evaluation reads these separately, with
`read_annotations`.
"""

import hashlib
import os
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mofore.data.frame_index import FrameIndex
from mofore.errors import UserError
from mofore.files import replace_file

FORMAT = "2"
VERSION_KEY, ROOT_KEY = b"mofore.manifest", b"mofore.root"
SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("frames", pa.int64(), nullable=False),
        pa.field("fps", pa.float64(), nullable=False),
        pa.field("width", pa.int64(), nullable=False),
        pa.field("height", pa.int64(), nullable=False),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("decoder", pa.string(), nullable=False),
        pa.field("access", pa.string(), nullable=False),
        pa.field("index", pa.binary(), nullable=False),
        pa.field("bad_frames", pa.int64(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        pa.field("split", pa.string()),
    ],
    metadata={VERSION_KEY: FORMAT.encode()},
)
ANNOTATIONS = ["label", "group", "split"]
VIDEO_COLUMNS = [
    *("uri", "offset", "size", "frames", "fps", "width", "height", "duration"),
    *("decoder", "access", "index"),
]


class Decoder(Enum):
    """The library that decodes a video."""

    pyav = "pyav"
    decord = "decord"
    torchcodec = "torchcodec"


class Access(Enum):
    """How a reader gets to a frame: from the key frame before it, or from the first frame."""

    seek = "seek"
    order = "order"


@dataclass(frozen=True, slots=True)
class Video:
    """What training knows about a video.

    uri: a path or URL that fsspec can open. offset: bytes, if the video is a member of a larger
    file. size: bytes. frames: those that can be decoded. fps: inverse of the mean time between two
    frames. width, height: as shown, in pixels. duration: to the end of the last frame, in seconds.
    decoder, access: with which `prepare` got the frames that FFmpeg shows. index: a packed
    FrameIndex.
    """

    uri: str
    offset: int | None
    size: int
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    decoder: Decoder
    access: Access
    index: bytes

    def frame_index(self) -> FrameIndex:
        """When its frames are shown."""
        return FrameIndex.unpack(self.index)


@dataclass(frozen=True, slots=True)
class Row(Video):
    """A row of the file: the video and annotations for evaluation.

    bad_frames: frames that cannot be decoded or that the file has lost. digest: SHA-256 of the
    bytes (hex). fingerprint: changes if the file may have changed; "" if unknown.
    """

    bad_frames: int
    digest: str
    fingerprint: str = ""
    label: str | None = None
    group: str | None = None
    split: str | None = None


class Annotations(NamedTuple):
    """What only evaluation may know: one entry per row of the manifest, None if unknown."""

    labels: list[str | None]
    groups: list[str | None]
    splits: list[str | None]


class Manifest(Sequence[Video]):
    """The videos of a manifest in compact form: about 100 MB per million, in each process.

    `digest` (SHA-256, hex) identifies, in order, the columns that training reads and the bytes of
    every file. Annotations are excluded: other splits leave it unchanged.
    """

    def __init__(self, path: str, root: str, table: pa.Table, digest: str):
        self.path = path
        self.root = root
        self.digest = digest
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> Video:  # type: ignore[override]  # slices are not supported
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path} has rows 0 to {len(self) - 1}, not {row}")
        values = {name: self._table.column(name)[row].as_py() for name in VIDEO_COLUMNS}
        values["uri"] = _resolve(values["uri"], self.root)
        values["decoder"], values["access"] = Decoder(values["decoder"]), Access(values["access"])
        return Video(**values)

    def column(self, name: str) -> np.ndarray:
        """One of the columns frames, width, height (i64), fps, duration (f64): [rows].

        Raises KeyError for any other column.
        """
        return self._table.column(name).to_numpy()


def _resolve(uri: str, folder: str) -> str:
    return uri if "://" in uri or uri.startswith("/") else posixpath.join(folder, uri)


def read_manifest(path: str | os.PathLike[str], root: str | None = None) -> Manifest:
    """Read everything except the annotations.

    root: where the videos lie; None for the place that the manifest names.

    Raises UserError if there is no manifest at `path`, or if it lists no video.
    """
    path = os.fspath(path)
    table = _read(path, [*VIDEO_COLUMNS, "digest"])
    if not len(table):
        raise UserError(f"{path} lists no video. Create it again with `mofore prepare`.")
    if root is None:
        stored = (table.schema.metadata or {}).get(ROOT_KEY, b"").decode()
        root = _resolve(stored, posixpath.dirname(path))
    return Manifest(path, root, table.drop_columns("digest").combine_chunks(), _digest(table))


def read_annotations(path: str | os.PathLike[str]) -> Annotations:
    """Labels, groups and splits, for evaluation only.

    Raises UserError if there is no manifest at `path`.
    """
    table = _read(os.fspath(path), ANNOTATIONS)
    return Annotations(*(table.column(name).to_pylist() for name in ANNOTATIONS))


def read_splits(path: str | os.PathLike[str]) -> list[str | None]:
    """The split of every row, the one annotation that pretraining reads, to exclude test videos.

    Raises UserError if there is no manifest at `path`.
    """
    return _read(os.fspath(path), ["split"]).column("split").to_pylist()


def write_manifest(path: str | os.PathLike[str], rows: Iterable[Row], root: str = "") -> None:
    """Write `rows` atomically to a local file, in their order; equal rows give equal bytes.

    root: where uris count from; itself it may count from the manifest's folder.
    """
    table = pa.Table.from_pylist([plain_values(row) for row in rows], schema=SCHEMA)
    table = table.replace_schema_metadata(SCHEMA.metadata | {ROOT_KEY: root.encode()})
    with replace_file(path) as temporary:
        pq.write_table(table, temporary)


def plain_values(row: Row) -> dict[str, Any]:
    """The values of its columns."""
    return asdict(row) | {"decoder": row.decoder.value, "access": row.access.value}


def from_plain_values(values: dict[str, Any]) -> Row:
    """The row of `plain_values`. Raises ValueError, TypeError or KeyError for other values."""
    known = {"decoder": Decoder(values["decoder"]), "access": Access(values["access"])}
    return Row(**values | known)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """All columns of all rows, uris as stored. Raises UserError if there is no manifest at `path`.

    For `prepare`, not for training: rows have annotations.
    """
    table = _read(os.fspath(path), SCHEMA.names)
    return [from_plain_values(values) for values in table.to_pylist()]


def _read(path: str, columns: list[str]) -> pa.Table:
    remedy = "Create one with `mofore prepare VIDEOS --out DIR`."
    try:
        with fsspec.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            version = (schema.metadata or {}).get(VERSION_KEY, FORMAT.encode()).decode()
            if version != FORMAT:
                raise UserError(
                    f"{path} has manifest format {version}; this version of MoFore reads format "
                    f"{FORMAT}. {remedy}"
                )
            missing = [name for name in SCHEMA.names if name not in schema.names]
            if missing:
                raise UserError(
                    f"{path} is not a manifest: it has no column {', '.join(missing)}. {remedy}"
                )
            table = parquet.read(columns=columns).select(columns)
    except FileNotFoundError:
        raise UserError(f"There is no manifest at {path}. {remedy}") from None
    except IsADirectoryError:
        raise UserError(
            f"{path} is a folder. Give the file in it: {path.rstrip('/')}/manifest.parquet"
        ) from None
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{path} is not a Parquet file ({str(error).splitlines()[0]}). {remedy}"
        ) from None
    metadata = table.schema.metadata
    wanted = pa.schema([SCHEMA.field(name) for name in columns], metadata=metadata)
    for field in wanted:
        if not field.nullable and table.column(field.name).null_count:
            raise UserError(f"{path} has rows without a value in column {field.name}. {remedy}")
    try:
        return table.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path} has a column of the wrong type: {error}. {remedy}") from None


def _digest(table: pa.Table) -> str:
    """SHA-256 of the values, column by column, independent of Parquet's chunks and encoding."""
    sha = hashlib.sha256()
    for field in table.schema:
        column = table.column(field.name)
        sha.update(field.name.encode())
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            sha.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
            sha.update(b"".join(column.cast(pa.binary()).to_pylist()))
        else:
            sha.update(pc.is_null(column).to_numpy().tobytes())
            kind = "<f8" if pa.types.is_floating(field.type) else "<i8"
            sha.update(column.fill_null(0).to_numpy().astype(kind).tobytes())
    return sha.hexdigest()
