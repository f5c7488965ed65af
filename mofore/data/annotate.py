"""Labels, groups and splits from lists in UCF101's formats. Used by evaluation only.

Splits: `trainlist01.txt`, `testlist01.txt`: one path per line, optionally followed by a class
number; or `random-80-20` instead of lists. Classes: `classInd.txt`, lines like `1 Archery`. Groups:
lines of `path<TAB>group`, or `ucf101`: the `_g08_` in the file name. Videos of a group come from
one source, so a group in both train and test is a leak.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence

from mofore.data.sources import Source, examples, read_lines, split_line
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
    """Assign a fifth of the videos to test, by the hash of their names: reproducible everywhere.

    Ignores groups; the note reports the effect.
    """
    shuffled = sorted(sources, key=lambda source: hashlib.sha256(source.key.encode()).digest())
    for position, source in enumerate(shuffled):
        source.split = "test" if position < round(len(shuffled) / 5) else "train"
    if any(source.group is None for source in sources):
        return [
            f"{RANDOM_SPLIT}: videos of one source may be in both splits, "
            "which inflates test scores."
        ]
    shared = [group for group, splits in _splits_of_groups(sources).items() if len(splits) > 1]
    if not shared:
        return []
    return [
        f"{RANDOM_SPLIT}: {len(shared)} groups are in both splits, which inflates test scores: "
        f"{examples(shared)}."
    ]


def read_classes(path: str) -> dict[str, str]:
    """Class number (as text) -> name. Raises UserError for a malformed or repeated line."""
    classes: dict[str, str] = {}
    for line in read_lines(path):
        number, _, name = line.strip().partition(" ")
        if not number.isdigit() or not name.strip() or number in classes:
            raise UserError(
                f"{path}: {line!r} does not define a new class. "
                "Each line must look like '1 ApplyEyeMakeup'."
            )
        classes[number] = name.strip()
    return classes


def _apply_split(sources: list[Source], path: str, names: dict[str, str]) -> list[str]:
    split = _split_name(path)
    entries = {entry["path"] or "": entry["label"] for entry in map(split_line, read_lines(path))}
    numbers = set(entries.values()) - {None}
    # Some datasets write the same number on every line. It is not a class.
    is_class = bool(names) and len(numbers) > 1
    in_two_splits, wrong_class = [], []
    for source in _matched(sources, list(entries), path):
        if source.split not in (None, split):
            in_two_splits.append(source.key)
        source.split = split
        number = entries[source.key]
        if is_class and number is not None:
            name = names.get(number)
            if name is None or source.label not in (None, name):
                wrong_class.append(f"{source.key} (list: {number} {name}, folder: {source.label})")
            source.label = name
    if in_two_splits:
        raise UserError(
            f"{len(in_two_splits)} videos of {path} are in another split too: "
            f"{examples(in_two_splits)}. Correct the lists."
        )
    if wrong_class:
        raise UserError(
            f"{len(wrong_class)} lines of {path} have the number of another class: "
            f"{examples(wrong_class)}. Correct the list or the class list."
        )
    return _note_unknown(sources, list(entries), path)


def _split_name(path: str) -> str:
    for prefix, split in SPLIT_NAMES.items():
        if os.path.basename(path).startswith(prefix):
            return split
    raise UserError(
        f"Cannot infer the split from the file name {path}: "
        f"it must start with {', '.join(SPLIT_NAMES)}."
    )


def _matched(sources: list[Source], keys: Sequence[str], path: str) -> list[Source]:
    """The sources that a list names. Raises UserError if there are none."""
    listed = set(keys)
    found = [source for source in sources if source.key in listed]
    if not found:
        entry = f"Its first entry is {keys[0]}" if keys else "The list is empty"
        raise UserError(
            f"{path} names none of the videos. {entry}; the first video is {sources[0].key}. "
            "Entries must be relative to the folder of videos."
        )
    return found


def _note_unknown(sources: list[Source], keys: Sequence[str], path: str) -> list[str]:
    known = {source.key for source in sources}
    unknown = [key for key in keys if key not in known]
    if not unknown:
        return []
    return [
        f"{len(unknown)} of {len(keys)} entries of {path} are not among the videos: "
        f"{examples(unknown)}."
    ]


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
    groups: dict[str, str] = {}
    for line in read_lines(path):
        key, *columns = line.split("\t")
        if not columns or not columns[0].strip():
            raise UserError(f"{path}: {line!r} has no group. Each line must be `path<TAB>group`.")
        groups[key] = columns[0].strip()
    for source in _matched(sources, list(groups), path):
        source.group = groups[source.key]
    missing = [source.key for source in sources if source.group is None]
    return _note_unknown(sources, list(groups), path) + _note_missing(
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
