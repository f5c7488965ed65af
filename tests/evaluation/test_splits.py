from collections import Counter

import pytest

from mofore.data.manifest import Annotations, Row, read_manifest, write_manifest
from mofore.errors import UserError
from mofore.evaluation.splits import choose_split, cut_groups, shared_groups, video_names


def annotations(labels=None, groups=None, splits=None, n=40) -> Annotations:
    unknown: list[str | None] = [None] * n
    return Annotations(labels or unknown, groups or unknown, splits or unknown)


def names(n=40) -> list[str]:
    return [f"{i}.mp4" for i in range(n)]


LABELS = [f"class {i % 4}" for i in range(40)]
GROUPS = [f"{i % 4}-{i // 8}" for i in range(40)]  # five groups of two videos in every class


def test_the_manifests_own_split_is_used():
    given = ["train"] * 24 + ["test"] * 16
    split = choose_split(names(), annotations(LABELS, [str(i) for i in range(40)], given))
    assert split.name == "manifest-split"
    assert split.parts.tolist() == given
    assert not split.notes


def test_leaking_groups_change_the_protocols_name():
    given = ["train", "test"] * 20
    split = choose_split(names(), annotations(LABELS, [str(i // 4) for i in range(40)], given))
    assert split.name == "manifest-split-shared-groups"
    assert "shared between train and test: 10" in split.notes[0]


def test_other_parts_are_left_out_and_counted():
    split = choose_split(
        names(), annotations(LABELS, None, ["train"] * 20 + ["val"] * 12 + ["test"] * 8)
    )
    assert Counter(split.parts.tolist()) == {"train": 20, "": 12, "test": 8}
    assert "left out: 12" in split.notes[0]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_groups_are_never_cut_apart(labels):
    split = choose_split(names(), annotations(labels, GROUPS))
    assert split.name == "group-split"
    assert shared_groups(split.groups.tolist(), split.parts.tolist()) == []
    assert Counter(split.parts.tolist()) == {"train": 32, "test": 8}


def test_every_class_with_two_groups_is_in_both_parts():
    split = choose_split(names(), annotations(LABELS, GROUPS))
    for part in ("train", "test"):
        assert {
            label for label, where in zip(LABELS, split.parts, strict=True) if where == part
        } == set(LABELS)


def test_a_class_with_one_group_stays_in_train():
    parts = cut_groups(["a", "a", "b", "c"], ["x", "x", "y", "y"])
    assert parts[:2] == ["train", "train"]
    assert sorted(parts[2:]) == ["test", "train"]


def test_without_groups_the_name_says_so():
    split = choose_split(names(), annotations(LABELS))
    assert split.name == "random-80-20"
    assert Counter(split.parts.tolist()) == {"train": 32, "test": 8}


def test_a_column_with_train_alone_is_not_used_and_that_is_told():
    split = choose_split(names(), annotations(LABELS, GROUPS, ["train"] * 40))
    assert split.name == "group-split"
    assert "holds only train" in split.notes[0]


def test_the_cut_does_not_depend_on_the_order():
    forward = cut_groups(GROUPS, LABELS)
    backward = cut_groups(GROUPS[::-1], LABELS[::-1])
    assert forward == backward[::-1]


def test_the_digest_names_the_split_and_not_the_order():
    rows = annotations(LABELS, None, ["train", "test"] * 20)
    backwards = annotations(LABELS[::-1], None, ["test", "train"] * 20)
    other = annotations(LABELS, None, ["test", "train"] * 20)
    assert choose_split(names(), rows).digest == choose_split(names()[::-1], backwards).digest
    assert choose_split(names(), rows).digest != choose_split(names(), other).digest


def test_where_no_test_part_can_be_cut_the_remedy_is_named():
    with pytest.raises(UserError, match="`split` column"):
        choose_split(names(2), annotations(["x", "y"], ["a", "b"]))


def test_a_video_is_called_the_same_wherever_the_dataset_lies(tmp_path):
    def row(uri: str, offset: int | None = None) -> Row:
        return Row(uri, offset, None if offset is None else 5, 10, 10.0, 8, 8, 1.0, "0")

    found = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        rows = [row("a.mp4"), row("shard.tar", 0), row("shard.tar", 512), row("s3://bucket/b.mp4")]
        write_manifest(folder / "manifest.parquet", rows)
        found.append(video_names(read_manifest(folder / "manifest.parquet")))
    assert found[0] == found[1] == ["a.mp4", "shard.tar@0", "shard.tar@512", "s3://bucket/b.mp4"]
