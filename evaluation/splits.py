"""The manifest's rows in, one of "train", "test" or "" (neither) for each row out, with the protocol's name.

No source group is in both parts, unless the protocol's name says so. Nothing here is random: the cut follows
from hashes of the groups' names, so it is the same on every machine, at every seed, and hardly moves when
videos are added.
"""

import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mofore.data.manifest import Annotations, Manifest
from mofore.errors import UserError

TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """parts, groups: str [N] aligned with the manifest's rows; a video without a group is its own group."""

    name: str
    parts: np.ndarray
    groups: np.ndarray
    names: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 (hex) over the sorted (uri, part): two results are comparable only where it is the same."""
        lines = sorted(f"{name}\t{part}\n" for name, part in zip(self.names, self.parts, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def choose_split(names: Sequence[str], annotations: Annotations) -> Split:
    """The manifest's own split where it has train and test, else 80/20 by source group, else 80/20 by video.

    names: of the videos (`video_names`). Raises UserError where no test part can be cut.
    """
    groups = [
        f"group {g}" if g else f"video {name}" for g, name in zip(annotations.groups, names, strict=True)
    ]
    given = Counter(split for split in annotations.splits if split)
    notes = []
    if given["train"] and given["test"]:
        name = "manifest-split"
        parts = [split if split in ("train", "test") else "" for split in annotations.splits]
        if neither := parts.count(""):
            notes.append(f"videos whose split is neither train nor test, left out: {neither}")
        if shared := shared_groups(groups, parts):
            name = "manifest-split-shared-groups"
            notes.append(f"groups shared between train and test: {len(shared)}, {shared[0]!r} among them")
    else:
        name = "group-split" if any(annotations.groups) else "random-80-20"
        parts = cut_groups(groups, annotations.labels)
        if given:
            notes.append(
                f"the manifest's split column holds only {', '.join(sorted(given))}, so it was not used"
            )
        if "test" not in parts:
            raise UserError(
                f"No test part can be cut from {len(names)} videos: no class has two source groups. Give the "
                "manifest a `split` column with train and test, or more videos, or leave out its `group` column."
            )
    return Split(name, np.array(parts, dtype=str), np.array(groups, dtype=str), tuple(names), tuple(notes))


def cut_groups(groups: Sequence[str], labels: Sequence[str | None]) -> list[str]:
    """ "train" or "test" for each video: within each class a fifth of the groups, at least one of two, is test.

    A group counts to its most frequent class. A class with a single group stays in train, since a class that
    only the test part holds could not be recognised.
    """
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        members[group][label or ""] += 1
    strata = defaultdict(list)
    for group in sorted(members, key=lambda group: hashlib.sha256(group.encode()).digest()):
        strata[min(members[group].items(), key=lambda item: (-item[1], item[0]))[0]].append(group)
    test: set[str] = set()
    for stratum in strata.values():
        share = max(1, round(TEST_SHARE * len(stratum))) if len(stratum) > 1 else 0
        test.update(stratum[:share])
    return ["test" if group in test else "train" for group in groups]


def shared_groups(groups: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Names of the groups that have videos in train and in test, sorted."""
    sides = {
        side: {g for g, part in zip(groups, parts, strict=True) if part == side} for side in ("train", "test")
    }
    return sorted(sides["train"] & sides["test"])


def video_names(manifest: Manifest) -> list[str]:
    """What a video is called wherever the dataset lies: its uri from the manifest's folder on, where it is below it.

    A member of a larger file shares its uri with the others, so its place in the file belongs to its name.
    """
    folder = posixpath.dirname(manifest.path)
    above = f"{folder}/" if folder else ""
    names = [(video.uri.removeprefix(above), video.offset) for video in manifest]
    return [uri if offset is None else f"{uri}@{offset}" for uri, offset in names]
