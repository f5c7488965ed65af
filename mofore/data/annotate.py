"""Labels, groups and splits from lists, in the formats that UCF101 came with. For evaluation only.

Splits: `trainlist01.txt`, `testlist01.txt`: a path a line, a class number behind it or not. Classes:
`classInd.txt`, lines like `1 Archery`. Groups: lines of `path<TAB>group`, or `ucf101`: the `_g08_` in a
file's name. In place of split lists, `random-80-20`. Videos of one group come from one source, so a group in both train and test is a leak.
"""

import hashlib
import os
import re
from collections.abc import Sequence

from mofore.data.sources import Source, examples, read_lines, split_line
from mofore.errors import UserError

RANDOM_SPLIT = "random-80-20"
SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation"}
UCF101_GROUP = re.compile(r"(?:v_)?(?P<group>.+_g\d+)_c\d+\.\w+")


def annotate(
    sources: list[Source], splits: Sequence[str], classes: str | None, groups: str | None
) -> list[str]:
    """Completes `sources` in place; returns what the user should know, a sentence each.

    UserError where lists contradict each other or the folders: a video or a group in two splits, a class
    number that is another class than the folder's, a list that names none of the videos.
    """
    notes: list[str] = []
    names = read_classes(classes) if classes else {}
    for source in sources:
        if names and source.label is not None:
            source.label = names.get(source.label, source.label)
    at_random = list(splits) == [RANDOM_SPLIT]
    for path in splits if not at_random else ():
        notes += _apply_split(sources, path, names)
    if names:
        _check_labels(sources, set(names.values()), classes)
    if groups == "ucf101":
        _groups_from_names(sources)
    elif groups:
        notes += _apply_groups(sources, groups)
    if splits:
        notes += _without(sources, "split", "is in none of the split lists", "are in none of the split lists")
    if at_random:
        notes.append(_split_at_random(sources))
    else:
        _check_leak(sources)
    return notes


def _split_at_random(sources: list[Source]) -> str:
    """A fifth of the videos is test, by the hash of their names: the same fifth everywhere. Groups are ignored."""
    shuffled = sorted(sources, key=lambda source: hashlib.sha256(source.key.encode()).digest())
    for place, source in enumerate(shuffled):
        source.split = "test" if place < round(len(shuffled) / 5) else "train"
    return f"{RANDOM_SPLIT}: videos of one source may be in both parts, so test scores flatter."


def read_classes(path: str) -> dict[str, str]:
    """Class number (as text) -> name."""
    classes: dict[str, str] = {}
    for line in read_lines(path):
        number, _, name = line.strip().partition(" ")
        if not number.isdigit() or not name.strip() or number in classes:
            raise UserError(f"{path}: {line!r} is not a new class. Each line reads like '1 ApplyEyeMakeup'.")
        classes[number] = name.strip()
    return classes


def _apply_split(sources: list[Source], path: str, names: dict[str, str]) -> list[str]:
    split = next(
        (name for start, name in SPLIT_NAMES.items() if os.path.basename(path).startswith(start)), None
    )
    if split is None:
        raise UserError(
            f"Cannot tell the split from the name {path}: it must start with {', '.join(SPLIT_NAMES)}."
        )
    entries = {entry["path"] or "": entry["label"] for entry in map(split_line, read_lines(path))}
    numbers = set(entries.values()) - {None}
    # Some datasets write the same number behind every path: a mark, not a class.
    is_class = bool(names) and len(numbers) > 1
    both, wrong = [], []
    for source in _matched(sources, list(entries), path):
        if source.split not in (None, split):
            both.append(source.key)
        source.split = split
        number = entries[source.key]
        if is_class and number is not None:
            named = names.get(number)
            if named is None or source.label not in (None, named):
                wrong.append(f"{source.key} (list: {number} {named}, folder: {source.label})")
            source.label = named
    if both:
        raise UserError(
            f"{len(both)} videos of {path} are in another split too: {examples(both)}. Mend the lists."
        )
    if wrong:
        raise UserError(f"{len(wrong)} lines of {path} have a number of another class: {examples(wrong)}.")
    return _unknown(sources, list(entries), path)


def _matched(sources: list[Source], keys: Sequence[str], path: str) -> list[Source]:
    listed = set(keys)
    found = [source for source in sources if source.key in listed]
    if not found:
        line = f"The list says {keys[0]}" if keys else "The list is empty"
        raise UserError(
            f"{path} names none of the videos. {line}, the first video is {sources[0].key}: "
            "is ROOT the folder that the list counts from?"
        )
    return found


def _unknown(sources: list[Source], keys: Sequence[str], path: str) -> list[str]:
    known = {source.key for source in sources}
    unknown = [key for key in keys if key not in known]
    if not unknown:
        return []
    return [f"{len(unknown)} of {len(keys)} entries of {path} are not among the videos: {examples(unknown)}."]


def _check_labels(sources: list[Source], names: set[str], classes: str | None) -> None:
    strange = [
        f"{source.label} ({source.key})" for source in sources if source.label and source.label not in names
    ]
    if strange:
        raise UserError(
            f"{len(strange)} videos have a label that {classes} does not know: {examples(strange)}."
        )


def _groups_from_names(sources: list[Source]) -> None:
    strange = []
    for source in sources:
        if match := UCF101_GROUP.fullmatch(source.key.rsplit("/")[-1]):
            source.group = match["group"]
        else:
            strange.append(source.key)
    if strange:
        raise UserError(
            f"{len(strange)} names have no UCF101 group (v_CLASS_gNN_cNN.avi): {examples(strange)}. "
            "Give a file with `path<TAB>group` lines in place of ucf101."
        )


def _apply_groups(sources: list[Source], path: str) -> list[str]:
    """Further columns (a fold) are not read: which fold is for testing is what the split lists say."""
    groups: dict[str, str] = {}
    for line in read_lines(path):
        key, *columns = line.split("\t")
        if not columns or not columns[0].strip():
            raise UserError(f"{path}: {line!r} has no group. Each line reads `path<TAB>group`.")
        groups[key] = columns[0].strip()
    for source in _matched(sources, list(groups), path):
        source.group = groups[source.key]
    return _unknown(sources, list(groups), path) + _without(
        sources, "group", f"has no group in {path}", f"have no group in {path}"
    )


def _without(sources: list[Source], field: str, one: str, many: str) -> list[str]:
    bare = [source.key for source in sources if getattr(source, field) is None]
    if not bare:
        return []
    return [f"{len(bare)} of {len(sources)} videos {one if len(bare) == 1 else many}: {examples(bare)}."]


def _check_leak(sources: list[Source]) -> None:
    first: dict[str, Source] = {}
    leaks: dict[str, str] = {}
    for source in sources:
        if source.group is None or source.split is None:
            continue
        other = first.setdefault(source.group, source)
        if other.split != source.split:
            leaks[source.group] = (
                f"{source.group} ({other.key} in {other.split}, {source.key} in {source.split})"
            )
    if leaks:
        raise UserError(
            f"{len(leaks)} groups are in more than one split, so test videos would be known from training: "
            f"{examples(list(leaks.values()))}. Mend the lists, or leave the groups out if this is meant."
        )
