"""Train and test splits of a manifest.

No source group is in both splits unless the name of the split says so. Nothing here is random: a
split that is derived follows from hashes of the group names. It is the same on every machine and
for every seed, and changes little when videos are added.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mofore.data.manifest import Annotations, Manifest
from mofore.errors import UserError

TEST_FRACTION = 0.2


@dataclass(frozen=True, slots=True)
class EvaluationSplit:
    """The videos of a manifest, their annotations and their split; every array is aligned with it.

    name: how the split was made. names (`video_names`), labels ("" if unknown), groups (a video
    without a group is its own group), splits ("train", "test" or "" for neither): str [rows].
    notes: caveats for the reader of the results.
    """

    name: str
    names: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    splits: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 (hex) of the sorted (name, split) pairs. Results are comparable if it is equal."""
        lines = sorted(
            f"{name}\t{split}\n" for name, split in zip(self.names, self.splits, strict=True)
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def choose_split(names: Sequence[str], annotations: Annotations) -> EvaluationSplit:
    """The manifest's own split if it has train and test, else 80/20 by source group, else by video.

    names: `video_names` of the manifest. Raises UserError if no test split can be derived.
    """
    groups = [
        f"group {group}" if group else f"video {name}"
        for group, name in zip(annotations.groups, names, strict=True)
    ]
    given = Counter(split for split in annotations.splits if split)
    notes = []
    if given["train"] and given["test"]:
        name = "manifest-split"
        splits = [split if split in ("train", "test") else "" for split in annotations.splits]
        if neither := splits.count(""):
            notes.append(f"videos whose split is neither train nor test, left out: {neither}")
        if shared := shared_groups(groups, splits):
            name = "manifest-split-shared-groups"
            notes.append(
                f"source groups in both train and test: {len(shared)}, for example {shared[0]!r}"
            )
    else:
        name = "group-split" if any(annotations.groups) else "random-80-20"
        splits = derive_splits(groups, annotations.labels)
        if given:
            notes.append(
                "the manifest's split column is not used: it has only "
                f"{', '.join(sorted(given))} videos"
            )
        if "test" not in splits:
            raise UserError(
                f"Cannot derive a test split from {len(names)} videos: no class has two source "
                "groups. Give the manifest a `split` column with train and test, add videos, or "
                "leave out its `group` column."
            )
    return EvaluationSplit(
        name,
        names=np.array(names, dtype=str),
        labels=np.array([label or "" for label in annotations.labels], dtype=str),
        groups=np.array(groups, dtype=str),
        splits=np.array(splits, dtype=str),
        notes=tuple(notes),
    )


def derive_splits(groups: Sequence[str], labels: Sequence[str | None]) -> list[str]:
    """ "train" or "test" for each video: a fifth of the source groups of each class is test.

    At least one of two or more groups is test. A group counts for its most frequent class. A class
    with one group is in train, because a class without train videos cannot be recognised.
    """
    members: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        members[group][label or ""] += 1
    strata = defaultdict(list)
    for group in sorted(members, key=lambda group: hashlib.sha256(group.encode()).digest()):
        strata[min(members[group].items(), key=lambda item: (-item[1], item[0]))[0]].append(group)
    test: set[str] = set()
    for stratum in strata.values():
        count = max(1, round(TEST_FRACTION * len(stratum))) if len(stratum) > 1 else 0
        test.update(stratum[:count])
    return ["test" if group in test else "train" for group in groups]


def shared_groups(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Names of the groups that have videos in both train and test, sorted."""
    by_split = {
        name: {group for group, split in zip(groups, splits, strict=True) if split == name}
        for name in ("train", "test")
    }
    return sorted(by_split["train"] & by_split["test"])


def video_names(manifest: Manifest) -> list[str]:
    """Names that stay the same if the dataset moves: uris relative to the folder of the videos.

    A member of a larger file shares its uri with other members, so its offset is part of its name.
    """
    prefix = f"{manifest.root.rstrip('/')}/" if manifest.root else ""
    names = [(video.uri.removeprefix(prefix), video.offset) for video in manifest]
    return [uri if offset is None else f"{uri}@{offset}" for uri, offset in names]
