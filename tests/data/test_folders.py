"""Folders and URLs: every video is found under one name, and nothing is left aside silently."""

import os
import zipfile

import fsspec
import pytest
from fsspec.registry import known_implementations

from mofore.data.folders import list_videos, parse_root
from mofore.data.sources import find_sources
from mofore.data.storage import load
from mofore.errors import UserError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_left_aside_are_counted_by_suffix(tmp_path):
    make(tmp_path, "a.GIF", "b.rmvb", "c.txt", "x/d.TXT", "x/e", "x/f.jpg", "x/.g.mp4", ".h/i.mp4")
    keys, notes = list_videos(parse_root(str(tmp_path)))
    assert keys == ["a.GIF", "b.rmvb"]
    assert len(notes) == 1
    for count in ("2 .txt", "1 .jpg", "2 hidden", "1 without a suffix", "Rename files without"):
        assert count in notes[0]


def test_links_to_one_folder_are_named(tmp_path):
    """Each video once; a real folder wins over a link, whatever their order."""
    root = tmp_path / "videos"
    make(root, "run/a.mp4", "run/deep/b.mp4")
    make(tmp_path, "elsewhere/c.mp4")
    for name, target in [
        ("alias", root / "run"),
        ("jump", tmp_path / "elsewhere"),
        ("leap", tmp_path / "elsewhere"),
        ("run/deep/loop", root),
        ("run/deep/self", root / "run" / "deep"),
    ]:
        (root / name).symlink_to(target)
    keys, notes = list_videos(parse_root(str(root)))
    assert keys == ["jump/c.mp4", "run/a.mp4", "run/deep/b.mp4"]
    assert "4 folders have two names" in notes[0]
    assert "alias = run, leap = jump" in notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists folders of any mode")
def test_an_unreadable_folder_is_named(tmp_path):
    make(tmp_path, "run/a.mp4")
    (tmp_path / "run").chmod(0)
    with pytest.raises(UserError, match=r"Cannot list the folder .*run"):
        find_sources(str(tmp_path))
    (tmp_path / "run").chmod(0o700)


NAMES = ("run/a.mp4", "run/b.txt", "c.mp4", "run/.d.mp4", ".e/f.mp4")


@pytest.fixture
def archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for name in NAMES:
            file.writestr(f"inner/{name}", f"content of {name}")
    return tmp_path / "x.zip"


@pytest.mark.parametrize(
    ("root", "inner"),
    [
        ("zip://::file://{archive}", "inner/"),
        ("zip::file://{archive}", "inner/"),
        ("zip://inner::file://{archive}", ""),
        ("zip://inner/::{archive}", ""),
        ("simplecache::zip://inner::file://{archive}", ""),
        ("memory://", "inner/"),
        ("memory://inner/", ""),
        ("simplecache::memory://inner", ""),
    ],
)
def test_uris_below_a_url_open_their_file(root, inner, archive):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for name in NAMES:
        memory.pipe(f"/inner/{name}", f"content of {name}".encode())
    sources, notes = find_sources(root.format(archive=archive))
    labels = {"c.mp4": inner.rstrip("/") or None, "run/a.mp4": "inner" if inner else "run"}
    assert {source.key: source.label for source in sources} == {
        inner + name: label for name, label in labels.items()
    }
    for source in sources:
        assert load(source.uri).data == f"content of {source.key.removeprefix(inner)}".encode()
    assert len(notes) == 1
    assert "2 hidden" in notes[0]
    assert "1 .txt" in notes[0]


def test_a_list_of_videos_in_an_archive(archive, tmp_path):
    (tmp_path / "list.txt").write_text("./run/a.mp4 fast\nrun\\b.mp4 slow\n")
    sources, _ = find_sources(f"zip://inner::file://{archive}", str(tmp_path / "list.txt"))
    assert [(source.uri, source.key, source.label) for source in sources] == [
        (f"zip://inner/run/a.mp4::file://{archive}", "run/a.mp4", "fast"),
        (f"zip://inner/run/b.mp4::file://{archive}", "run/b.mp4", "slow"),
    ]


def test_a_url_of_a_local_folder_is_that_folder(tmp_path):
    make(tmp_path, "run/a.mp4")
    assert find_sources(f"file://{tmp_path}/") == find_sources(str(tmp_path))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("missing", "missing does not exist. Give the folder"),
        ("nope://bucket/videos", "nope is not a protocol that fsspec knows"),
        ("simplecache::nope://bucket", "nope is not a protocol that fsspec knows"),
        ("zip://::file:///no/such.zip", r"Cannot list zip://::file:///no/such.zip: FileNotFound"),
        ("memory://nothing/here", "There is no video in memory://nothing/here"),
    ],
)
def test_roots_that_cannot_be_listed(root, message):
    with pytest.raises(UserError, match=message):
        find_sources(root)


def test_a_missing_package_is_named_once(tmp_path, monkeypatch):
    """A protocol that fsspec knows, of a package that is certainly not installed."""
    monkeypatch.setitem(
        known_implementations,
        "absent",
        {"class": "no_such_package.FileSystem", "err": "Install no_such_package to read absent"},
    )
    message = r"needs a Python package that is not installed\. Install no_such_package"
    with pytest.raises(UserError, match=message):
        find_sources("absent://bucket/videos")
    (tmp_path / "list.txt").write_text("absent://b/1.mp4\nabsent://b/2.mp4\n")
    with pytest.raises(UserError, match=message):
        find_sources(str(tmp_path), str(tmp_path / "list.txt"))
