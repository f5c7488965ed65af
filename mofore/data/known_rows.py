"""Rows that an earlier `prepare` verified: of its manifest, or of a scan that was interrupted.

A file is decoded again only if it has changed: if its size, times or ETag differ.
"""

import base64
import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mofore.data.manifest import Access, Decoder, Row, from_plain_values, plain_values, read_rows
from mofore.data.sources import Source
from mofore.data.storage import fingerprint
from mofore.errors import UserError

JOURNAL = "unfinished.jsonl"


class KnownRows:
    """Rows by place. out: the folder of the manifest. decoders, max_bad_share: as in `prepare`; a
    row that they would not give is not used.
    """

    def __init__(self, out: str, decoders: Sequence[Decoder], max_bad_share: float) -> None:
        self.journal = Path(out) / JOURNAL
        self.decoders, self.max_bad_share = decoders, max_bad_share
        self._rows: dict[tuple[str, int | None], Row] = {}
        with contextlib.suppress(UserError):  # none yet, or of another format
            self._add(read_rows(os.path.join(out, "manifest.parquet")))
        self._add(read_journal(self.journal))

    def _add(self, rows: Sequence[Row]) -> None:
        self._rows |= {(row.uri, row.offset): row for row in rows}

    def find(self, source: Source, uri: str) -> Row | None:
        """The row of an unchanged video, with the annotations of `source`. uri: as in the row."""
        row = self._rows.get((uri, source.offset))
        if row is None or not row.fingerprint or not self._would_be_given(row):
            return None
        if source.size not in (None, row.size) or fingerprint(source.uri) != row.fingerprint:
            return None
        return replace(row, label=source.label, group=source.group, split=source.split)

    def _would_be_given(self, row: Row) -> bool:
        if row.bad_frames > self.max_bad_share * (row.bad_frames + row.frames):
            return False
        return row.access is Access.seek and row.decoder in self.decoders[:1]

    def append(self, row: Row) -> None:
        """Write a row to the journal, which outlives an interruption."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        values = plain_values(row) | {"index": base64.b64encode(row.index).decode()}
        with self.journal.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(values)}\n")

    def finish(self) -> None:
        """The manifest has all rows."""
        self.journal.unlink(missing_ok=True)


def read_journal(path: Path) -> list[Row]:
    """Its whole lines; the last one may be cut off."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):
                values: dict[str, Any] = json.loads(line)
                values["index"] = base64.b64decode(values["index"])
                rows.append(from_plain_values(values))
    return rows
