"""Find the videos that the entries of a list name."""

import posixpath
from collections import defaultdict
from collections.abc import Sequence

from mofore.data.entries import Entry
from mofore.data.folders import examples
from mofore.data.sources import Source
from mofore.errors import UserError


def match_entries(
    sources: list[Source], entries: Sequence[Entry], path: str
) -> tuple[list[tuple[Source, Entry]], list[str]]:
    """Each source that a list names, with its entry, and the names of the other entries.

    Raises UserError if there are no sources, or if two entries name one source.
    """
    by_name = {source.uri: source for source in sources if source.offset is None}
    by_name |= {source.key: source for source in sources}
    by_stem: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        by_stem[posixpath.splitext(posixpath.basename(source.key))[0]].append(source)
    found: dict[str, tuple[Source, Entry]] = {}
    unknown = []
    for entry in entries:
        named = _find(entry, by_name, by_stem)
        if not named:
            unknown.append(entry.name)
            continue
        if len(named) > 1:
            raise UserError(
                f"{path}, {entry.where}: {len(named)} videos have the name {entry.stems[0]}: "
                f"{examples([source.key for source in named])}. Give a list of paths."
            )
        source = named[0]
        _, other = found.setdefault(source.key, (source, entry))
        if (other.label, other.group, other.split) != (entry.label, entry.group, entry.split):
            raise UserError(
                f"{path} lists {source.key} twice, with other values: {other.where} and "
                f"{entry.where}. Remove one of the two."
            )
    if not found:
        first = f"Its first entry is {unknown[0]}" if unknown else "The list is empty"
        raise UserError(
            f"{path} names none of the videos. {first}; the first video is {sources[0].key}. "
            "Entries must be relative to the folder of videos."
        )
    return list(found.values()), unknown


def _find(
    entry: Entry, by_name: dict[str, Source], by_stem: dict[str, list[Source]]
) -> list[Source]:
    if entry.stems:
        return next((by_stem[stem] for stem in entry.stems if stem in by_stem), [])
    member = f"[{entry.offset}]" if entry.offset is not None else ""
    spellings = (entry.path, entry.path.replace("\\", "/"))  # lists written on Windows
    names = (posixpath.normpath(name) if "://" not in name else name for name in spellings)
    return [by_name[name + member] for name in names if name + member in by_name][:1]


def note_unknown(unknown: Sequence[str], entries: int, path: str) -> list[str]:
    """A note on the names of a list that are not among the videos; [] if there are none."""
    if not unknown:
        return []
    return [
        f"{len(unknown)} of {entries} entries of {path} are not among the videos: "
        f"{examples(unknown)}."
    ]
