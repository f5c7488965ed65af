"""sources: videos with keys, labels and splits that count from the root. Nothing is decoded."""

import pytest

from mofore.data.annotate import RANDOM_SPLIT, annotate
from mofore.data.sources import find_sources
from mofore.errors import UserError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def annotations(found):
    return [(source.key, source.label, source.split) for source in found.sources]


@pytest.fixture
def root(tmp_path):
    """A folder with two classes and a video each."""
    return make(tmp_path / "videos", "jump/b.avi", "run/a.avi")


def test_entries_are_relative_to_the_root_or_the_list(root, tmp_path):
    make(tmp_path, "near.mp4", "other/far.mp4")
    listing = tmp_path / "list.txt"
    listing.write_text(
        f"jump/b.avi\nnear.mp4 fly\n\ngone.mp4\nmemory://bucket/a.mp4\n{tmp_path}/other/far.mp4\n"
    )
    found = find_sources(str(root), str(listing))
    assert [(source.uri, source.key, source.label) for source in found.sources] == [
        (str(tmp_path / "other/far.mp4"), "../other/far.mp4", None),
        (str(root / "gone.mp4"), "gone.mp4", None),
        (str(root / "jump/b.avi"), "jump/b.avi", "jump"),
        ("memory://bucket/a.mp4", "memory://bucket/a.mp4", None),
        (str(tmp_path / "near.mp4"), "near.mp4", "fly"),
    ]


def test_names_count_from_the_root_not_from_the_disk(tmp_path):
    """The same tree in two places: equal keys, order and random split, for folders and lists."""
    names = [f"{label}/{index}.mp4" for label in ("run", "jump") for index in range(20)]
    seen = []
    for place in ("a", "z/deep/er"):
        folder = make(tmp_path / place, *(f"videos/{name}" for name in names), "beside/1.mp4")
        (tmp_path / f"link-{place[0]}").symlink_to(folder / "videos")
        lines = [*names[1:], "beside/1.mp4", str(folder / "videos" / names[0])]
        (folder / "list.txt").write_text("\n".join(lines))
        for root in (folder / "videos", tmp_path / f"link-{place[0]}"):
            for listing in (None, str(folder / "list.txt")):
                found = find_sources(str(root), listing)
                annotate(found.sources, [RANDOM_SPLIT], None, None)
                seen.append((listing is None, annotations(found)))
    assert seen[0] == seen[2] == seen[4] == seen[6]
    assert seen[1] == seen[3] == seen[5] == seen[7]
    assert len(seen[0][1]) == 40
    assert len(seen[1][1]) == 41


def test_members_of_one_file_are_in_the_order_of_the_file(root, tmp_path):
    (root / "shard.tar").touch()
    (tmp_path / "list.csv").write_text(
        "path,offset,size,label\nshard.tar,1024,9,run\nshard.tar,512,9,jump\n"
    )
    sources, _ = find_sources(str(root), str(tmp_path / "list.csv"))
    assert [(source.key, source.offset, source.size, source.label) for source in sources] == [
        ("shard.tar[512]", 512, 9, "jump"),
        ("shard.tar[1024]", 1024, 9, "run"),
    ]


# ---------------------------------------------------------------------------- folders of splits


@pytest.mark.parametrize(
    ("train", "validation"), [("train", "val"), ("Training", "VALIDATION"), ("TRAIN", "valid")]
)
def test_folders_of_splits_give_the_split_and_the_next_folder_the_label(
    tmp_path, train, validation
):
    make(tmp_path, f"{train}/run/a.mp4", f"{train}/jump/x/b.mp4", f"{validation}/run/c.mp4")
    found = find_sources(str(tmp_path))
    assert sorted(annotations(found)) == sorted(
        [
            (f"{train}/jump/x/b.mp4", "jump", "train"),
            (f"{train}/run/a.mp4", "run", "train"),
            (f"{validation}/run/c.mp4", "run", "validation"),
        ]
    )
    assert len(found.notes) == 1
    assert "The first folders are splits" in found.notes[0]
    assert f"{train} = train" in found.notes[0]


def test_videos_directly_in_the_folder_of_a_split_have_no_label(tmp_path):
    make(tmp_path, "train/a.mp4", "train/run/b.mp4", "test/c.mp4", "d.mp4")
    found = find_sources(str(tmp_path))
    assert annotations(found) == [
        ("d.mp4", None, None),
        ("test/c.mp4", None, "test"),
        ("train/a.mp4", None, "train"),
        ("train/run/b.mp4", "run", "train"),
    ]
    assert "2 videos lie directly in the folder of a split" in found.notes[1]


def test_a_split_folder_beside_other_folders_is_a_label_and_noted(tmp_path):
    """A class may be called train: nothing is guessed."""
    make(tmp_path, "bus/a.mp4", "train/run/b.mp4")
    found = find_sources(str(tmp_path))
    assert annotations(found) == [("bus/a.mp4", "bus", None), ("train/run/b.mp4", "train", None)]
    assert len(found.notes) == 1
    assert "train too, because there are other folders beside: bus" in found.notes[0]
    assert "give --list" in found.notes[0]


def test_a_split_list_that_contradicts_the_folders_raises(tmp_path):
    root = make(tmp_path / "videos", "train/run/a.mp4", "test/run/b.mp4")
    (tmp_path / "testlist.txt").write_text("train/run/a.mp4\n")
    with pytest.raises(UserError, match=r"in another split too: train/run/a.mp4 \(train\)"):
        annotate(find_sources(str(root)).sources, [str(tmp_path / "testlist.txt")], None, None)
    (tmp_path / "trainlist.txt").write_text("train/run/a.mp4\n")
    found = find_sources(str(root))
    assert annotate(found.sources, [str(tmp_path / "trainlist.txt")], None, None) == []
    assert [source.split for source in found.sources] == ["test", "train"]


def test_the_split_of_a_table_overrides_that_of_a_folder(tmp_path):
    root = make(tmp_path / "videos", "train/run/a.mp4", "train/run/b.mp4")
    (tmp_path / "list.csv").write_text(
        "path,label,split\ntrain/run/a.mp4,sprint,\ntrain/run/b.mp4,run,Val\n"
    )
    found = find_sources(str(root), str(tmp_path / "list.csv"))
    assert annotations(found) == [
        ("train/run/a.mp4", "sprint", "train"),
        ("train/run/b.mp4", "run", "validation"),
    ]
    assert "1 videos have another split in " in found.notes[1]
