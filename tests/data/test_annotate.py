"""annotate: UCF101's lists, with their real irregularities; contradictions raise errors."""

import os

import pytest

from mofore.data.annotate import RANDOM_SPLIT, annotate, read_classes
from mofore.data.sources import find_sources
from mofore.errors import UserError

NAMES = [
    f"{name}/v_{name}_g{group:02}_c01.avi" for name in ("Archery", "Bowling") for group in (1, 8)
]


@pytest.fixture
def root(tmp_path):
    """Two classes, a video of group 1 and one of group 8 in each; lists are written beside."""
    for name in NAMES:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


@pytest.fixture
def write(tmp_path):
    def write(name, *lines, end="\r\n"):
        (tmp_path / name).write_text("".join(line + end for line in lines), newline="")
        return str(tmp_path / name)

    return write


@pytest.fixture
def lists(write):
    """UCF101's three files, with its Windows line ends; only the training list has numbers."""
    train = write("trainlist01.txt", f"{NAMES[1]} 1", f"{NAMES[3]} 2")
    return [train, write("testlist01.txt", NAMES[0], NAMES[2])], write(
        "classInd.txt", "1 Archery", "2 Bowling"
    )


def test_ucf101(root, lists):
    splits, classes = lists
    sources, _ = find_sources(str(root))
    assert annotate(sources, splits, classes, "ucf101") == []
    assert [(source.key, source.label, source.group, source.split) for source in sources] == [
        (NAMES[0], "Archery", "Archery_g01", "test"),
        (NAMES[1], "Archery", "Archery_g08", "train"),
        (NAMES[2], "Bowling", "Bowling_g01", "test"),
        (NAMES[3], "Bowling", "Bowling_g08", "train"),
    ]


def test_class_numbers_in_a_list_become_labels(root, lists, write):
    splits, classes = lists
    listing = write(
        "all.txt", *(f"{name} {1 + index // 2}" for index, name in enumerate(NAMES)), end="\n"
    )
    sources, _ = find_sources(str(root), listing)
    annotate(sources, splits, classes, None)
    assert [source.label for source in sources] == ["Archery", "Archery", "Bowling", "Bowling"]


def test_numbers_of_another_class_raise(root, lists, write):
    train = write("trainlist01.txt", f"{NAMES[1]} 2", f"{NAMES[3]} 1")
    with pytest.raises(
        UserError, match=r"2 lines of .*trainlist01.*list: 2 Bowling, folder: Archery"
    ):
        annotate(find_sources(str(root)).sources, [train], lists[1], None)


def test_the_same_number_on_every_line_is_not_a_class(root, lists, write):
    """As in JHMDB's lists, for videos of every class."""
    train = write("trainlist01.txt", *(f"{name} 1" for name in NAMES))
    sources, _ = find_sources(str(root))
    annotate(sources, [train], lists[1], None)
    assert [source.label for source in sources] == ["Archery", "Archery", "Bowling", "Bowling"]


def test_a_folder_that_is_not_a_class_raises(root, write):
    with pytest.raises(
        UserError, match=r"2 videos have a label that is not in .*classInd.txt: Bowling"
    ):
        annotate(find_sources(str(root)).sources, [], write("classInd.txt", "1 Archery"), None)


def test_groups_from_a_table(root, write):
    groups = write(
        "groups.tsv", *(f"{name}\tsource{index % 2}\t1" for index, name in enumerate(NAMES[:3]))
    )
    sources, _ = find_sources(str(root))
    notes = annotate(sources, [], None, groups)
    assert [source.group for source in sources] == ["source0", "source1", "source0", None]
    assert len(notes) == 1
    assert "1 of 4 videos has no group" in notes[0]
    assert NAMES[3] in notes[0]


def test_a_group_in_both_splits_raises(root, lists, write):
    groups = write("groups.tsv", *(f"{name}\tsource" for name in NAMES))
    with pytest.raises(
        UserError, match=r"1 groups are in more than one split.*source \(.*g01.*in test"
    ):
        annotate(find_sources(str(root)).sources, lists[0], None, groups)


def test_a_video_in_both_splits_raises(root, lists, write):
    test = write("testlist01.txt", NAMES[0], NAMES[1])
    with pytest.raises(
        UserError, match=f"1 videos of .*testlist01.* are in another split too: {NAMES[1]}"
    ):
        annotate(find_sources(str(root)).sources, [lists[0][0], test], None, None)


def test_missing_entries_are_noted(root, write):
    train = write("trainlist01.txt", NAMES[0], "Archery/gone.avi 1")
    notes = annotate(find_sources(str(root)).sources, [train], None, None)
    assert notes[0].startswith("1 of 2 entries of ")
    assert "Archery/gone.avi" in notes[0]
    assert "3 of 4 videos have no split in any of the split lists" in notes[1]


def test_a_list_of_other_videos_raises(root, write):
    train = write("trainlist01.txt", f"videos/{NAMES[0]}")
    with pytest.raises(
        UserError,
        match=f"names none of the videos.*videos/{NAMES[0]}.*relative to the folder of videos",
    ):
        annotate(find_sources(str(root)).sources, [train], None, None)


def test_malformed_lists_raise(root, write, tmp_path):
    sources, _ = find_sources(str(root))
    with pytest.raises(UserError, match="must start with train, test, val"):
        annotate(sources, [write("fold1.txt", NAMES[0])], None, None)
    with pytest.raises(UserError, match=r"Cannot read the list .*trainlist09\.txt"):
        annotate(sources, [str(tmp_path / "trainlist09.txt")], None, None)
    with pytest.raises(UserError, match="does not define a new class"):
        read_classes(write("classInd.txt", "Archery 1"))
    with pytest.raises(UserError, match="has no group"):
        annotate(sources, [], None, write("groups.tsv", NAMES[0]))


def test_names_without_a_ucf101_group_raise(root):
    (root / "Archery" / "mine.avi").touch()
    with pytest.raises(UserError, match=r"1 names have no UCF101 group.*Archery/mine\.avi"):
        annotate(find_sources(str(root)).sources, [], None, "ucf101")


def test_a_random_split_covers_every_video_and_mentions_no_lists(root):
    """Without groups the videos of one source may be in both splits, and nothing else is noted."""
    sources, _ = find_sources(str(root))
    notes = annotate(sources, [RANDOM_SPLIT], None, None)
    assert sorted(source.split or "" for source in sources) == ["test", "train", "train", "train"]
    assert len(notes) == 1
    assert "videos of one source may be in both splits" in notes[0]


def test_a_random_split_notes_only_groups_that_it_divides(root, write):
    """Groups of one video each are never divided, so there is nothing to note."""
    single, _ = find_sources(str(root))
    assert annotate(single, [RANDOM_SPLIT], None, "ucf101") == []
    groups = write("groups.tsv", *(f"{name}\tsource" for name in NAMES))
    shared, _ = find_sources(str(root))
    notes = annotate(shared, [RANDOM_SPLIT], None, groups)
    assert len(notes) == 1
    assert "1 groups are in both splits, which inflates test scores: source." in notes[0]
    assert [source.split for source in shared] == [source.split for source in single]


def test_splits_of_a_table_are_not_reported_missing(root, write):
    """A table with a split column needs no split lists; without --split, none is mentioned."""
    table = write("videos.csv", "path,split", *(f"{name},train" for name in NAMES), end="\n")
    assert annotate(find_sources(str(root), table).sources, [], None, None) == []
    test = write("testlist01.txt", NAMES[1])
    table = write("part.csv", "path,split", f"{NAMES[0]},train", f"{NAMES[1]},", end="\n")
    assert annotate(find_sources(str(root), table).sources, [test], None, None) == []


def test_a_random_split_says_that_it_replaces_others(root, write):
    table = write("videos.csv", "path,split", *(f"{name},train" for name in NAMES), end="\n")
    notes = annotate(find_sources(str(root), table).sources, [RANDOM_SPLIT], None, "ucf101")
    assert notes == ["random-80-20 replaces the splits of 4 videos from folders or --list."]


def test_names_that_are_not_utf8_are_split_too(root):
    """Linux allows any bytes in file names."""
    with open(os.fsencode(root) + b"/Archery/\xff.avi", "wb"):
        pass
    sources, _ = find_sources(str(root))
    annotate(sources, [RANDOM_SPLIT], None, None)
    assert None not in [source.split for source in sources]


@pytest.mark.parametrize(
    "spelling", ["./{}", "{root}/{}", "  {}", "{}  ", "Archery/../{}", "{backslashes}"]
)
def test_lists_may_spell_paths_in_other_ways(root, write, spelling):
    lines = [
        spelling.format(name, root=root, backslashes=name.replace("/", "\\")) for name in NAMES
    ]
    sources, _ = find_sources(str(root))
    train = write("trainlist01.txt", "\ufeff" + lines[0], *lines[1:])
    groups = write("groups.tsv", *(f"{line}\tsource" for line in lines))
    assert annotate(sources, [train], None, groups) == []
    assert {(source.split, source.group) for source in sources} == {("train", "source")}


def test_split_lists_in_other_formats(root, write):
    """Labels of TSN's lists are the last number; a Kinetics CSV names files by their ids."""
    train = write("train_videos.txt", f"{NAMES[1]} 60 1", f"{NAMES[3]} 61 2")
    test = write(
        "Val.csv",
        "label,youtube_id,time_start,time_end,split",
        *(f"{name.split('/')[0]},{name.split('/')[1][:-4]},0,10,validate" for name in NAMES[::2]),
    )
    classes = write("classInd.txt", "1 Archery", "2\tBowling")
    sources, _ = find_sources(str(root))
    notes = annotate(sources, [train, test], classes, None)
    assert [source.label for source in sources] == ["Archery", "Archery", "Bowling", "Bowling"]
    assert [source.split for source in sources] == ["validation", "train"] * 2
    assert len(notes) == 1
    assert "read as `path frames label`" in notes[0]


def test_labels_of_split_lists_are_used_where_there_are_no_others(root, write):
    listing = write("all.csv", "path", *NAMES, end="\n")
    for name in NAMES:
        (root / name).rename(root / name.split("/")[1])
    flat = [name.split("/")[1] for name in NAMES]
    sources, _ = find_sources(str(root))
    train = write("train.txt", *(f"{name} {index // 2}" for index, name in enumerate(flat)))
    annotate(sources, [train], None, None)
    assert [source.label for source in sources] == ["0", "0", "1", "1"]
    with pytest.raises(UserError, match=r"None of the 4 videos in .*all.csv exists"):
        find_sources(str(root), listing)


def test_two_lines_that_disagree_on_a_video_raise(root, write):
    sources, _ = find_sources(str(root))
    train = write("trainlist01.txt", f"{NAMES[0]} 1", f"{NAMES[1]} 1", f"./{NAMES[0]} 2")
    with pytest.raises(UserError, match=r"twice, with other values: line 1 and line 3"):
        annotate(sources, [train], None, None)


def test_labels_of_a_split_list_that_are_not_used_are_noted(root, write):
    """Numbers of the folders' classes are another name for them; other classes are not."""
    sources, _ = find_sources(str(root))
    same = write("train1.txt", *(f"{name} {index // 2}" for index, name in enumerate(NAMES)))
    assert annotate(sources, [same], None, None) == []
    other = write("train2.txt", *(f"{name} {index % 2}" for index, name in enumerate(NAMES)))
    notes = annotate(sources, [other], None, None)
    assert [source.label for source in sources] == ["Archery", "Archery", "Bowling", "Bowling"]
    assert len(notes) == 1
    assert "train2.txt are not used" in notes[0]
    assert "0 = Archery, 1 = Archery, 0 = Bowling" in notes[0]
