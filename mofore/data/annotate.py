"""Labels, groups and splits from lists. Used by evaluation only.

Splits: lists such as `trainlist01.txt` and `testlist01.txt`, in any format of `mofore.data.lists`,
where the label may be a class number; or `random-80-20` instead of lists. Classes: `classInd.txt`,
lines like `1 Archery`. Groups: lines of `path<TAB>group`, or `ucf101`: the `_g08_` in the file
name. Videos of a group come from one source, so a group in both train and test is a leak.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence

from mofore.data.entries import Entry, numbered_lines, read_lines
from mofore.data.folders import examples
from mofore.data.lists import read_list
from mofore.data.matching import match_entries, note_unknown
from mofore.data.sources import Source
from mofore.errors import UserError

RANDOM_SPLIT = "random-80-20"
SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation"}
UCF101_GROUP = re.compile(r"(?:v_)?(?P<group>.+_g\d+)_c\d+\.\w+")


def annotate(
    sources: list[Source], splits: Sequence[str], classes: str | None, groups: str | None
) -> list[str]:
    """Set label, group and split of `sources` in place; returns notes for the user (sentences).

    splits: paths of split lists, or [RANDOM_SPLIT]. classes: path of a class list. groups: path of
    a group list, or "ucf101".

    Raises UserError if a list matches none of the videos, or if the lists contradict each other or
    the folders: a video or a group in two splits, a class number that differs from the folder.
    """
    notes: list[str] = []
    names = read_classes(classes) if classes else {}
    for source in sources:
        if names and source.label is not None:
            source.label = names.get(source.label, source.label)
    is_random = list(splits) == [RANDOM_SPLIT]
    for path in () if is_random else splits:
        notes += _apply_split(sources, path, names)
    if classes and names:
        _check_labels(sources, set(names.values()), classes)
    if groups == "ucf101":
        _groups_from_names(sources)
    elif groups:
        notes += _apply_groups(sources, groups)
    if is_random:
        return notes + _split_at_random(sources)
    if splits:
        missing = [source.key for source in sources if source.split is None]
        notes += _note_missing(missing, len(sources), "no split in any of the split lists")
    _check_leak(sources)
    return notes


def _split_at_random(sources: list[Source]) -> list[str]:
    """Assign a fifth of the videos to test, by the hash of their keys: reproducible everywhere.

    Ignores groups; the note reports the effect.
    """
    notes = []
    if given := sum(source.split is not None for source in sources):
        notes.append(
            f"{RANDOM_SPLIT} replaces the splits of {given} videos from folders or --list."
        )
    shuffled = sorted(sources, key=lambda source: hashlib.sha256(_bytes(source.key)).digest())
    for position, source in enumerate(shuffled):
        source.split = "test" if position < round(len(shuffled) / 5) else "train"
    shared = [group for group, splits in _splits_of_groups(sources).items() if len(splits) > 1]
    if any(source.group is None for source in sources):
        notes.append(
            f"{RANDOM_SPLIT}: videos of one source may be in both splits, "
            "which inflates test scores."
        )
    elif shared:
        notes.append(
            f"{RANDOM_SPLIT}: {len(shared)} groups are in both splits, which inflates test "
            f"scores: {examples(shared)}."
        )
    return notes


def _bytes(key: str) -> bytes:
    return key.encode(errors="surrogateescape")  # file names need not be UTF-8


def read_classes(path: str) -> dict[str, str]:
    """Class number (as text) -> name. Raises UserError for a malformed or repeated line."""
    classes: dict[str, str] = {}
    for line in read_lines(path):
        number, name = (line.split(maxsplit=1) + [""])[:2]
        if not number.isdigit() or not name or number in classes:
            raise UserError(
                f"{path}: {line!r} does not define a new class. "
                "Each line must look like '1 ApplyEyeMakeup'."
            )
        classes[number] = name
    return classes


def _apply_split(sources: list[Source], path: str, names: dict[str, str]) -> list[str]:
    entries, notes = read_list(path)
    split = None if entries and all(entry.split for entry in entries) else _split_name(path)
    matches, unknown = match_entries(sources, entries, path)
    in_two_splits = []
    for source, entry in matches:
        if source.split not in (None, entry.split or split):
            in_two_splits.append(f"{source.key} ({source.split})")
        source.split = entry.split or split
    if in_two_splits:
        raise UserError(
            f"{len(in_two_splits)} videos of {path} are in another split too: "
            f"{examples(in_two_splits)}. Correct the lists. If the other split comes from a "
            "folder, give --list with the columns path and split instead."
        )
    labelled = [(source, entry.label) for source, entry in matches if entry.label is not None]
    # Some datasets write the same number on every line. It is not a class.
    if len({label for _, label in labelled}) > 1 and names:
        _apply_class_numbers(labelled, path, names)
    elif len({label for _, label in labelled}) > 1:
        notes += _apply_labels(labelled, path)
    return notes + note_unknown(unknown, len(entries), path)


def _apply_class_numbers(
    labelled: Sequence[tuple[Source, str]], path: str, names: dict[str, str]
) -> None:
    classes = set(names.values())
    wrong_class = []
    for source, label in labelled:
        name = label if label in classes else names.get(label)
        if name is None or source.label not in (None, name):
            wrong_class.append(f"{source.key} (list: {label} {name}, folder: {source.label})")
        source.label = name
    if wrong_class:
        raise UserError(
            f"{len(wrong_class)} lines of {path} have the number of another class: "
            f"{examples(wrong_class)}. Correct the list or the class list."
        )


def _apply_labels(labelled: Sequence[tuple[Source, str]], path: str) -> list[str]:
    """Set labels where there are none. A note tells if the others are other classes."""
    pairs = {(source.label, label) for source, label in labelled if source.label is not None}
    for source, label in labelled:
        source.label = source.label or label
    folders, numbers = {folder for folder, _ in pairs}, {number for _, number in pairs}
    if len(pairs) == len(folders) == len(numbers):  # other names of the same classes
        return []
    given = examples([f"{number} = {folder}" for folder, number in sorted(pairs)])
    return [
        f"The labels of {path} are not used, because its videos have other labels, from folders "
        f"or --list: {given}. To use them, give {path} as --list."
    ]


def _split_name(path: str) -> str:
    for prefix, split in SPLIT_NAMES.items():
        if os.path.basename(path).lower().startswith(prefix):
            return split
    raise UserError(
        f"Cannot infer the split from the file name {path}: "
        f"it must start with {', '.join(SPLIT_NAMES)}."
    )


def _check_labels(sources: list[Source], names: set[str], path: str) -> None:
    unknown = [
        f"{source.label} ({source.key})"
        for source in sources
        if source.label and source.label not in names
    ]
    if unknown:
        raise UserError(
            f"{len(unknown)} videos have a label that is not in {path}: {examples(unknown)}. "
            "Add the class, or rename the folder."
        )


def _groups_from_names(sources: list[Source]) -> None:
    unmatched = []
    for source in sources:
        if match := UCF101_GROUP.fullmatch(source.key.rsplit("/")[-1]):
            source.group = match["group"]
        else:
            unmatched.append(source.key)
    if unmatched:
        raise UserError(
            f"{len(unmatched)} names have no UCF101 group (v_CLASS_gNN_cNN.avi): "
            f"{examples(unmatched)}. Give a file of `path<TAB>group` lines instead of ucf101."
        )


def _apply_groups(sources: list[Source], path: str) -> list[str]:
    """Set groups from a list. Further columns, such as a fold, are ignored: splits have lists."""
    entries = []
    for number, line in numbered_lines(path):
        key, *columns = (value.strip() for value in line.split("\t"))
        if not columns or not columns[0]:
            raise UserError(
                f"{path}, line {number}: {line!r} has no group. Each line must be `path<TAB>group`."
            )
        entries.append(Entry(f"line {number}", key, group=columns[0]))
    matches, unknown = match_entries(sources, entries, path)
    for source, entry in matches:
        source.group = entry.group
    missing = [source.key for source in sources if source.group is None]
    return note_unknown(unknown, len(entries), path) + _note_missing(
        missing, len(sources), f"no group in {path}"
    )


def _note_missing(keys: Sequence[str], videos: int, what: str) -> list[str]:
    if not keys:
        return []
    verb = "has" if len(keys) == 1 else "have"
    return [f"{len(keys)} of {videos} videos {verb} {what}: {examples(keys)}."]


def _splits_of_groups(sources: Sequence[Source]) -> dict[str, dict[str, Source]]:
    """Group -> split -> its first video there, for the videos that have both."""
    found: dict[str, dict[str, Source]] = defaultdict(dict)
    for source in sources:
        if source.group is not None and source.split is not None:
            found[source.group].setdefault(source.split, source)
    return found


def _check_leak(sources: list[Source]) -> None:
    leaks = [
        f"{group} ({', '.join(f'{source.key} in {split}' for split, source in splits.items())})"
        for group, splits in _splits_of_groups(sources).items()
        if len(splits) > 1
    ]
    if leaks:
        raise UserError(
            f"{len(leaks)} groups are in more than one split, so test videos would resemble "
            f"training videos: {examples(leaks)}. Correct the lists, or omit the groups if this is "
            "intended."
        )
