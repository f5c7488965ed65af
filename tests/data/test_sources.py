"""sources: videos of folders and lists, sorted, with their labels. Nothing is decoded."""

import os

import fsspec
import pytest

from mofore.data.sources import find_sources, split_line
from mofore.errors import UserError


@pytest.fixture
def root(tmp_path):
    """A folder with two classes and a video each."""
    for name in ("jump/b.avi", "run/a.avi"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True)
        (tmp_path / "videos" / name).touch()
    return tmp_path / "videos"


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a/b.avi", "a/b.avi", None),
        ("a/b.avi 12", "a/b.avi", "12"),
        ("a b/c (1)!@2.avi  7 ", "a b/c (1)!@2.avi", "7"),
        ("a/take 2.mp4 of 3.MP4", "a/take 2.mp4 of 3.MP4", None),
        ("a/b.webm brush hair", "a/b.webm", "brush hair"),
        ("https://host/video?id=3 4", "https://host/video?id=3 4", None),
    ],
)
def test_lines_of_lists(line, path, label):
    assert split_line(line) == {"path": path, "label": label}


def test_entries_are_relative_to_the_root_or_the_list(root, tmp_path):
    (tmp_path / "near.mp4").touch()
    listing = tmp_path / "list.txt"
    listing.write_text("jump/b.avi\nnear.mp4 fly\n\ngone.mp4\ns3://bucket/a.mp4\n")
    assert [(source.uri, source.label) for source in find_sources(str(root), str(listing))] == [
        (str(tmp_path / "near.mp4"), "fly"),
        (str(root / "gone.mp4"), None),
        (str(root / "jump/b.avi"), "jump"),
        ("s3://bucket/a.mp4", None),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", "a,b\n1,2\n", r"no column uri or path; its first line is 'a,b'"),
        ("list.csv", "path,label\n,run\n", "line 2: the column path is empty"),
        ("list.tsv", "path\toffset\tsize\na.bin\t5\t\n", "a.bin needs offset and size"),
        ("list.txt", "jump/b.avi\njump/b.avi 1\n", "lists jump/b.avi twice"),
        ("list.txt", "\n", "There is no video in .*list.txt"),
        ("list.txt", b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_errors_in_lists_name_the_line(root, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        find_sources(str(root), str(tmp_path / name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists folders of any mode")
def test_an_unreadable_folder_is_named(root):
    (root / "run").chmod(0)
    with pytest.raises(UserError, match="Cannot list the folder .*run"):
        find_sources(str(root))
    (root / "run").chmod(0o700)


def test_a_remote_folder_is_listed():
    for name in ("run/a.mp4", "run/b.txt", "c.mp4"):
        with fsspec.open(f"memory://listing/{name}", "wb") as file:
            file.write(b"x")
    found = [(source.uri, source.key, source.label) for source in find_sources("memory://listing/")]
    assert found == [
        ("memory://listing/c.mp4", "c.mp4", None),
        ("memory://listing/run/a.mp4", "run/a.mp4", "run"),
    ]
