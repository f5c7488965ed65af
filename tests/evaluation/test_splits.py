from collections import Counter

import pytest

from mofore.data.manifest import Annotations, read_manifest, write_manifest
from mofore.errors import UserError
from mofore.evaluation.splits import choose_split, derive_splits, shared_groups, video_names
from tests import videos


def annotations(labels=None, groups=None, splits=None, n=40) -> Annotations:
    unknown: list[str | None] = [None] * n
    return Annotations(labels or unknown, groups or unknown, splits or unknown)


def names(n=40) -> list[str]:
    return [f"{i}.mp4" for i in range(n)]


LABELS = [f"class {i % 4}" for i in range(40)]
GROUPS = [f"{i % 4}-{i // 8}" for i in range(40)]  # five groups of two videos in every class


def test_the_split_of_the_manifest_is_used():
    given = ["train"] * 24 + ["test"] * 16
    split = choose_split(names(), annotations(LABELS, [str(i) for i in range(40)], given))
    assert split.name == "manifest-split"
    assert split.splits.tolist() == given
    assert not split.notes


def test_shared_groups_change_the_name_of_the_split():
    given = ["train", "test"] * 20
    split = choose_split(names(), annotations(LABELS, [str(i // 4) for i in range(40)], given))
    assert split.name == "manifest-split-shared-groups"
    assert "in both train and test: 10" in split.notes[0]


def test_videos_of_other_splits_are_left_out_and_counted():
    split = choose_split(
        names(), annotations(LABELS, None, ["train"] * 20 + ["val"] * 12 + ["test"] * 8)
    )
    assert Counter(split.splits.tolist()) == {"train": 20, "": 12, "test": 8}
    assert "left out: 12" in split.notes[0]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_groups_are_never_divided(labels):
    split = choose_split(names(), annotations(labels, GROUPS))
    assert split.name == "group-split"
    assert shared_groups(split.groups.tolist(), split.splits.tolist()) == []
    assert Counter(split.splits.tolist()) == {"train": 32, "test": 8}


def test_every_class_with_two_groups_is_in_both_splits():
    split = choose_split(names(), annotations(LABELS, GROUPS))
    for name in ("train", "test"):
        assert {
            label for label, assigned in zip(LABELS, split.splits, strict=True) if assigned == name
        } == set(LABELS)


def test_a_class_with_one_group_stays_in_train():
    splits = derive_splits(["a", "a", "b", "c"], ["x", "x", "y", "y"])
    assert splits[:2] == ["train", "train"]
    assert sorted(splits[2:]) == ["test", "train"]


def test_without_groups_the_split_has_another_name():
    split = choose_split(names(), annotations(LABELS))
    assert split.name == "random-80-20"
    assert Counter(split.splits.tolist()) == {"train": 32, "test": 8}


def test_a_split_column_without_test_is_not_used_and_noted():
    split = choose_split(names(), annotations(LABELS, GROUPS, ["train"] * 40))
    assert split.name == "group-split"
    assert "has only train" in split.notes[0]


def test_derived_splits_do_not_depend_on_the_order():
    forward = derive_splits(GROUPS, LABELS)
    backward = derive_splits(GROUPS[::-1], LABELS[::-1])
    assert forward == backward[::-1]


def test_the_digest_depends_on_the_split_and_not_on_the_order():
    rows = annotations(LABELS, None, ["train", "test"] * 20)
    backwards = annotations(LABELS[::-1], None, ["test", "train"] * 20)
    other = annotations(LABELS, None, ["test", "train"] * 20)
    assert choose_split(names(), rows).digest == choose_split(names()[::-1], backwards).digest
    assert choose_split(names(), rows).digest != choose_split(names(), other).digest


def test_the_error_without_a_test_split_names_the_remedy():
    with pytest.raises(UserError, match="`split` column"):
        choose_split(names(2), annotations(["x", "y"], ["a", "b"]))


def test_names_of_videos_do_not_depend_on_the_folder_of_the_dataset(tmp_path):
    found = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        names = [("a.mp4", None), ("shard.tar", 0), ("shard.tar", 512), ("s3://bucket/b.mp4", None)]
        rows = [videos.row(uri, offset=offset) for uri, offset in names]
        write_manifest(folder / "manifest.parquet", rows)
        found.append(video_names(read_manifest(folder / "manifest.parquet")))
    assert found[0] == found[1] == ["a.mp4", "shard.tar@0", "shard.tar@512", "s3://bucket/b.mp4"]
