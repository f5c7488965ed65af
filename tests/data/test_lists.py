"""Lists: each format gives the same labels; a malformed line is named, never read as another."""

import json

import pytest

from mofore.data.lists import read_list, split_line
from mofore.data.sources import find_sources
from mofore.errors import UserError


@pytest.fixture
def root(tmp_path):
    """Four videos in no class folder."""
    (tmp_path / "videos").mkdir()
    for name in ("l1.mp4", "l2.mp4", "r1.mp4", "r2.mp4"):
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


@pytest.fixture
def labels(root, tmp_path):
    """labels(name, content) -> ({key: label}, notes) of a list beside the folder."""

    def labels(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        found = find_sources(str(root), str(tmp_path / name))
        return {source.key: source.label for source in found.sources}, found.notes

    return labels


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a/b.avi", ("a/b.avi", None)),
        ("a/b.avi 12", ("a/b.avi", "12")),
        ("a b/c (1)!@2.avi  7 ", ("a b/c (1)!@2.avi", "7")),
        ("a/take 2.mp4 of 3.MP4", ("a/take 2.mp4 of 3.MP4", None)),
        ("a/b.webm brush hair", ("a/b.webm", "brush hair")),
        ("a/b.webm\tbrush hair", ("a/b.webm", "brush hair")),
        ("a/b.webm , brush hair", ("a/b.webm", "brush hair")),
        ('"a, b.mp4", "brush, hair"', ("a, b.mp4", "brush, hair")),
        ('a.mp4,"brush, hair"', ("a.mp4", "brush, hair")),
        ("a.mp4 jumping, high", ("a.mp4", "jumping, high")),
        ("https://host/video?id=3 4", ("https://host/video?id=3 4", None)),
    ],
)
def test_lines_of_lists(line, expected):
    assert split_line(line, "list.txt, line 1") == expected


LABELS = {"l1.mp4": "left", "l2.mp4": "left", "r1.mp4": "right, up"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ours.txt", "l1.mp4 left\nl2.mp4   left \nr1.mp4 right, up\n"),
        ("tabs.txt", "l1.mp4\tleft\nl2.mp4\tleft\nr1.mp4\tright, up\n"),
        ("windows.txt", b"\xef\xbb\xbf./l1.mp4 left\r\n\r\nl2.mp4 left\r\nr1.mp4 right, up\r\n"),
        ("bare.csv", 'l1.mp4,left\nl2.mp4, left\nr1.mp4,"right, up"\n'),
        ("table.csv", 'path,label\nl1.mp4,left\nl2.mp4,left\nr1.mp4,"right, up"\n'),
        ("blanks.csv", ' path , label\nl1.mp4, left\n l2.mp4,left \nr1.mp4, "right, up"\n'),
        ("class.tsv", "uri\tClass\nl1.mp4\tleft\n\nl2.mp4\tleft\nr1.mp4\tright, up\n"),
        ("table.txt", 'label,path\nleft,l1.mp4\nleft,l2.mp4\n"right, up",r1.mp4\n'),
    ],
)
def test_each_way_to_write_a_list_gives_the_same_labels(labels, name, content):
    assert labels(name, content) == (LABELS, [])


@pytest.mark.parametrize(
    ("content", "expected", "form"),
    [
        ("l1.mp4 60 0\nr1.mp4 61 1\n", {"l1.mp4": "0", "r1.mp4": "1"}, "path frames label"),
        ("l1.mp4, 60, 0\nr1.mp4, 60, 1\n", {"l1.mp4": "0", "r1.mp4": "1"}, "path frames label"),
        ("l1.mp4 0 -1\nr1.mp4 0 -1\n", {"l1.mp4": None, "r1.mp4": None}, "path first last"),
        ("l1.mp4 0 -1 3\nr1.mp4 0 -1 4\n", {"l1.mp4": "3", "r1.mp4": "4"}, "first last label"),
    ],
)
@pytest.mark.parametrize("name", ["train.txt", "train.csv"])
def test_lists_of_tsn_videomae_and_mmaction(labels, name, content, expected, form):
    found, notes = labels(name, content)
    assert found == expected
    assert len(notes) == 1
    assert f"{form}`" in notes[0]


def test_doubtful_labels_are_noted(labels):
    assert (
        "begin with a number: '60 run'" in labels("a.txt", "l1.mp4 60 run\nr1.mp4 61 jump\n")[1][0]
    )
    assert "1 of 2 videos have no label in " in labels("b.txt", "l1.mp4 run\nr1.mp4\n")[1][0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "a,b\n1,2\n", r"list.csv has no column uri or path; its first line is 'a,b'"),
        ("list.csv", "path,label\n\n,run\n", r"line 3: the column uri or path is empty"),
        (
            "list.csv",
            "path,label,id\na.mp4,a,1\n",
            r"line 1: unknown column 'id'. Remove it, or ren",
        ),
        ("list.csv", ",path\n0,a.mp4\n", r"line 1: unknown column ''"),
        ("list.csv", "uri,path\na,b\n", r"line 1: two columns are the path: uri, path. Remove one"),
        (
            "list.csv",
            "path,label\nl1.mp4,jumping, high\n",
            r"line 2: 3 values for 2.*Quote a value",
        ),
        ("list.csv", "path,label\nl1.mp4\n", r"line 2: 1 values for 2 columns"),
        ("list.csv", 'path,label\nl1.mp4,"left\nr1.mp4,right\n', r"line 3: unexpected end of data"),
        (
            "list.csv",
            'path,label\nl1.mp4,"a\nr1.mp4,b"\n',
            r"line 3: a quoted value has a line end",
        ),
        ("list.csv", "l1.mp4,jumping, high\n", r"line 1: 'jumping, high' has a comma. Quote it"),
        ("list.tsv", "path\toffset\tsize\na.bin\t5\t\n", r"line 2: a.bin needs offset and size"),
        ("list.csv", "path,size\na.bin,5\n", r"line 2: a.bin needs offset and size"),
        ("list.txt", "l1.mp4 60 1\nr1.mp4 1\n", r"line 2: 2 numbers must follow the path"),
        (
            "list.txt",
            "l1.mp4 0 60 1\n",
            r"line 1: 3 numbers follow the path, and none is certainly",
        ),
        ("list.txt", "l1.mp4 0 7\n", r"line 1: 2 numbers follow the path, and none is certainly"),
        ("list.txt", "\n", r"There is no video in .*list.txt"),
        ("list.txt", b"\xff\xfe\x00", r"not a text file in UTF-8"),
        ("list.json", "{", r"list.json is not JSON"),
        ("list.json", '{"database": {}}', r"not a list of objects with an id"),
        ("k.csv", "youtube_id,label\na,run\n", r"line 2: youtube_id needs time_start and time_end"),
    ],
)
def test_errors_in_lists_name_the_line(labels, name, content, message):
    with pytest.raises(UserError, match=message):
        labels(name, content)


KINETICS = (
    "label,youtube_id,time_start,time_end,split,is_cc\n"
    "riding a bike,-aB_3,7,17,validate,0\n"
    '"jumping, high",bbbb,10.0,20.0,train,0\n'
    "swimming,gone,1,11,train,0\n"
)


def test_kinetics_finds_videos_by_their_ids(root, labels, tmp_path):
    (root / "riding a bike").mkdir()
    (root / "riding a bike" / "-aB_3_000007_000017.mp4").touch()
    (root / "bbbb.webm").touch()
    (tmp_path / "kinetics.csv").write_text(KINETICS)
    found = find_sources(str(root), str(tmp_path / "kinetics.csv"))
    assert [(source.key, source.label, source.split) for source in found.sources] == [
        ("bbbb.webm", "jumping, high", "train"),
        ("riding a bike/-aB_3_000007_000017.mp4", "riding a bike", "validation"),
    ]
    assert len(found.notes) == 1
    assert "1 of 3 videos of " in found.notes[0]
    assert "gone_000001_000011" in found.notes[0]
    (root / "bbbb.mp4").touch()
    with pytest.raises(UserError, match=r"kinetics.csv, line 3: 2 files have the name bbbb"):
        find_sources(str(root), str(tmp_path / "kinetics.csv"))


def test_the_labels_of_something_something_are_templates(labels, tmp_path):
    """In the file they have brackets, in its list of classes none."""
    rows = [
        {"id": "l1", "label": "pushing a pen left", "template": "Pushing [something] left"},
        {"id": "r1", "label": "pushing a cup left", "template": "Pushing [something] left"},
    ]
    label = "Pushing something left"
    for indent in (None, 1):
        assert labels("train.json", json.dumps(rows, indent=indent))[0] == {
            "l1.mp4": label,
            "r1.mp4": label,
        }
    assert labels("test.json", json.dumps([{"id": "r2"}]))[0] == {"r2.mp4": None}
    (tmp_path / "train.txt").write_text(json.dumps(rows))  # by its looks
    assert [entry.label for entry in read_list(str(tmp_path / "train.txt"))[0]] == [label, label]
    with pytest.raises(UserError, match=r"1 of 1 videos of .* have no file below .*: 7"):
        labels("gone.json", json.dumps([{"id": "7"}]))


def test_backslashes_are_read_as_slashes(root, labels):
    (root / "a").mkdir()
    (root / "a" / "b.mp4").touch()
    found, notes = labels("list.txt", "a\\b.mp4 run\n.\\l1.mp4 run\n")
    assert found == {"a/b.mp4": "run", "l1.mp4": "run"}
    assert len(notes) == 1
    assert "2 paths of " in notes[0]
    assert "backslashes" in notes[0]
    (root / "c\\d.mp4").touch()  # a name of Unix
    assert labels("list.txt", "c\\d.mp4 run\n") == ({"c\\d.mp4": "run"}, [])


@pytest.mark.parametrize("other", ["./l1.mp4", "a/../l1.mp4", ".//l1.mp4", "../videos/l1.mp4"])
def test_one_video_under_two_spellings_is_an_error(root, labels, other):
    with pytest.raises(UserError) as caught:
        labels("list.txt", f"l1.mp4 left\nr1.mp4 right\n{other} left\n")
    assert f"lists l1.mp4 twice: {other} in line 3 and l1.mp4 in line 1" in str(caught.value)
    for name in (root / "l1.mp4", f"file://{root}/l1.mp4"):
        with pytest.raises(UserError, match=r"lists l1.mp4 twice"):
            labels("list.txt", f"l1.mp4 left\n{name} left\n")


def test_a_list_without_an_existing_video_is_an_error(labels):
    with pytest.raises(UserError) as caught:
        labels("list.txt", "x/l1.mp4 left\nx/l2.mp4 left\n")
    assert "None of the 2 videos in " in str(caught.value)
    assert "x/l1.mp4, x/l2.mp4. Paths must be relative to " in str(caught.value)
