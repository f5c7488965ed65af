"""Find the videos of a folder or a list, as `Source`s.

Opens lists, but no video. Errors in lists are reported before hours of decoding begin.
"""

import os
import posixpath
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from mofore.data.entries import Entry, split_of
from mofore.data.folders import (
    SUFFIXES,
    Root,
    check_protocols,
    examples,
    list_videos,
    parse_root,
)
from mofore.data.lists import read_list
from mofore.data.storage import local_path
from mofore.errors import UserError


@dataclass(slots=True)
class Source:
    """A video to verify, and its annotations.

    uri: a path or URL. key: its name in lists and in every order and draw, the path relative to the
    folder of videos, with forward slashes; it does not depend on where that folder lies. offset,
    size: bytes, if the video is a member of a larger file.
    """

    uri: str
    key: str
    label: str | None = None
    group: str | None = None
    split: str | None = None
    offset: int | None = None
    size: int | None = None


class Found(NamedTuple):
    """The videos, sorted by key, and sentences that the user should read."""

    sources: list[Source]
    notes: list[str]


def find_sources(root: str, listing: str | None = None) -> Found:
    """The videos below `root`, or those in the list `listing` (formats: `mofore.data.lists`).

    The label is the first folder below `root`, unless the list gives one. If all first folders are
    names of splits, they give the split, and the second folder is the label. Links to folders are
    followed; hidden files and folders are skipped.

    Raises UserError for a missing root or list, an unreadable folder, a URL whose package is
    missing, no video, a list without an existing video, and a video listed twice.
    """
    folder = parse_root(root)
    if listing is not None:
        sources, notes = _listed(folder, listing)
    else:
        keys, notes = list_videos(folder)
        sources = [Source(folder.uri(key), key) for key in keys]
    if not sources:
        raise UserError(
            f"There is no video in {listing or root}. "
            f"Supported file names end in {' '.join(SUFFIXES)}."
        )
    notes += _annotate_from_folders(folder, sources, listing)
    sources.sort(key=lambda source: (source.key, source.offset or 0))
    for source in sources:
        if source.offset is not None:  # after sorting: members follow each other as in their file
            source.key = f"{source.key}[{source.offset}]"
    return Found(sources, notes)


# ------------------------------------------------------------------------- labels from folders


def _annotate_from_folders(root: Root, sources: list[Source], listing: str | None) -> list[str]:
    """Set absent labels, and splits if the first folders are splits; returns notes."""
    below = [source for source in sources if root.key(source.uri) and "/" in source.key]
    names = sorted({source.key.split("/")[0] for source in below})
    splits = [name for name in names if split_of(name)]
    if splits == names and names:
        return _annotate_from_split_folders(below, names, listing)
    unlabelled = [source for source in below if source.label is None]
    for source in unlabelled:
        source.label = source.key.split("/")[0]
    if not (splits and unlabelled):
        return []
    others = [name for name in names if name not in splits]
    return [
        f"The first folder of every video is its label, {examples(splits)} too, because there are "
        f"other folders beside: {examples(others)}. If {examples(splits)} are splits, give --list "
        "with the columns path, label and split."
    ]


def _annotate_from_split_folders(
    sources: list[Source], names: list[str], listing: str | None
) -> list[str]:
    other_split, unlabelled = [], []
    for source in sources:
        first, *rest = source.key.split("/")
        if source.split is None:
            source.split = split_of(first)
        elif source.split != split_of(first):
            other_split.append(f"{source.key} ({source.split})")
        if source.label is None and len(rest) > 1:
            source.label = rest[0]
        elif source.label is None:
            unlabelled.append(source.key)
    pairs = ", ".join(f"{name} = {split_of(name)}" for name in names)
    notes = [f"The first folders are splits ({pairs}), and the folders below them are labels."]
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} videos lie directly in the folder of a split, so they have no "
            f"label: {examples(unlabelled)}."
        )
    if other_split:
        notes.append(
            f"{len(other_split)} videos have another split in {listing} than their folder; that of "
            f"the list is used: {examples(other_split)}."
        )
    return notes


# ---------------------------------------------------------------------------------------- lists


def _listed(root: Root, listing: str) -> tuple[list[Source], list[str]]:
    entries, notes = read_list(listing)
    keys = _keys_by_stem(root) if any(entry.stems for entry in entries) else {}
    sources: list[Source] = []
    absent, converted = [], []
    first: dict[tuple[str, int | None], Entry] = {}
    for entry in entries:
        if entry.stems:
            key = _key_of_stem(entry, keys, listing)
            if key is None:
                absent.append(entry.stems[0])
                continue
            uri = root.uri(key)
        else:
            if "\\" in entry.path and not _exists(root, entry.path, listing):
                converted.append(entry.path)
                entry.path = entry.path.replace("\\", "/")
            uri, key = _locate(root, entry.path, listing)
        other = first.setdefault((uri, entry.offset), entry)
        if other is not entry:
            raise UserError(
                f"{listing} lists {key} twice: {entry.name} in {entry.where} and {other.name} in "
                f"{other.where}. Remove one of the two."
            )
        sources.append(
            Source(uri, key, entry.label, entry.group, entry.split, entry.offset, entry.size)
        )
    _check_uris(sources, listing, root)
    unlabelled = [source.key for source in sources if source.label is None]
    if 0 < len(unlabelled) < len(sources):
        notes.append(
            f"{len(unlabelled)} of {len(sources)} videos have no label in {listing}, so their "
            f"label is the folder below {root.folder}, if any: {examples(unlabelled)}."
        )
    if converted:
        notes.append(
            f"{len(converted)} paths of {listing} have backslashes, which were read as slashes: "
            f"{examples(converted)}."
        )
    if absent:
        missing = f"{len(absent)} of {len(entries)} videos of {listing} have no file below"
        found = f"{missing} {root.folder}: {examples(absent)}."
        if not sources:
            raise UserError(f"{found} Give the folder that holds them.")
        notes.append(found)
    return sources, notes


def _keys_by_stem(root: Root) -> dict[str, list[str]]:
    """File name without suffix -> keys."""
    found = defaultdict(list)
    for key in list_videos(root).keys:
        found[posixpath.splitext(posixpath.basename(key))[0]].append(key)
    return found


def _key_of_stem(entry: Entry, keys: dict[str, list[str]], listing: str) -> str | None:
    found = next((keys[stem] for stem in entry.stems if stem in keys), [])
    if len(found) > 1:
        raise UserError(
            f"{listing}, {entry.where}: {len(found)} files have the name {entry.stems[0]}: "
            f"{examples(found)}. Keep one of them, or give a list of paths."
        )
    return found[0] if found else None


def _locate(root: Root, path: str, listing: str) -> tuple[str, str]:
    """(uri, key) of a path in a list.

    A relative path is relative to `root` or, if there is no such file, to the list's folder.
    """
    path = local_path(path)
    if "://" in path:
        return path, root.key(path) or path
    if root.is_remote and not os.path.isabs(path):
        key = posixpath.normpath(path)
        return root.uri(key), key
    if not os.path.isabs(path):
        beside = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(listing)), path))
        uri = os.path.normpath(os.path.join(root.folder, path))
        if os.path.exists(beside) and not os.path.exists(uri):
            uri = beside
        return uri, root.key(uri) or os.path.normpath(path)
    uri = os.path.normpath(path)
    if root.is_remote:
        return uri, uri
    if inside := root.key(uri):
        return uri, inside
    # another name of the folder, through a link, or a path relative to it
    real = os.path.join(os.path.realpath(os.path.dirname(uri)), os.path.basename(uri))
    key = os.path.relpath(real, os.path.realpath(root.folder))
    return (uri, key) if key.startswith("../") else (root.uri(key), key)


def _exists(root: Root, path: str, listing: str) -> bool:
    uri, _ = _locate(root, path, listing)
    return "://" not in uri and os.path.lexists(uri)


def _check_uris(sources: list[Source], listing: str, root: Root) -> None:
    """Raise UserError for a URL whose package is missing, and if none of the local files exists."""
    remote = [source.uri for source in sources if "://" in source.uri]
    protocols = {tuple(part.split("://")[0] for part in uri.split("::")): uri for uri in remote}
    for uri in protocols.values():
        check_protocols(uri)
    if sources and not remote and not any(os.path.exists(source.uri) for source in sources):
        raise UserError(
            f"None of the {len(sources)} videos in {listing} exists: "
            f"{examples([source.key for source in sources])}. Paths must be relative to "
            f"{root.folder} or to the folder of the list."
        )
