"""layout: which file has which slice; a tensor that is not whole is named."""

import json

import numpy as np
import pytest

from mofore.checkpoint.format import meta_digest
from mofore.checkpoint.layout import IncompleteError, Layout, slice_key
from mofore.checkpoint.reader import find_latest_checkpoint
from mofore.errors import UserError
from tests.checkpoint.test_checkpoint import save

SHAPES = {"a": [2, 3], "b": [4], "none": [0, 5]}
# of two files, in any order
FILES = [[(1, 0, 1), (0, 4, 6), (2, 0, 0)], [(1, 1, 4), (0, 0, 4)]]


def layout(files: list[list[tuple[int, int, int]]]) -> Layout:
    return Layout(SHAPES, [np.array(rows, dtype=np.int64).reshape(-1, 3) for rows in files])


def test_a_slice_is_found_in_its_file():
    found = layout(FILES)
    assert list(found.find("a", 0, 6)) == [(0, 4, 1), (4, 6, 0)]
    assert list(found.find("a", 1, 4)) == [(0, 4, 1)]
    assert list(found.find("a", 4, 5)) == [(4, 6, 0)]
    assert list(found.find("b", 0, 2)) == [(0, 1, 0), (1, 4, 1)]
    assert list(found.find("b", 2, 2)) == []
    assert list(found.find("none", 0, 0)) == []


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ([FILES[0]], "a"),  # no start
        ([[(1, 0, 4), (0, 0, 4)]], "a"),  # no end
        ([[(1, 0, 4)]], "a"),  # nothing
        ([[(0, 0, 6), (1, 0, 1)], [(1, 2, 4)]], "b"),  # a gap
        ([*FILES, [(1, 0, 1)]], "b"),  # twice
        ([], "a"),
    ],
)
def test_a_tensor_that_is_not_whole_is_named(files, name):
    with pytest.raises(IncompleteError, match=f"its files do not make up {name}"):
        layout(files)


def test_a_whole_tensor_has_its_own_name():
    assert slice_key("a", 0, 6, 6) == "a"
    assert slice_key("a", 0, 5, 6) == "a[0:5]"


def test_a_checkpoint_that_lacks_a_file_is_damaged(tmp_path, monkeypatch):
    """Even if checkpoint.json does not list the file, and is valid."""
    folder = save(tmp_path, 5, ranks=2, monkeypatch=monkeypatch)
    path = folder / "checkpoint.json"
    meta = json.loads(path.read_text())
    del meta["files"]["rank-00001.safetensors"]
    path.write_text(json.dumps(meta | {"digest": meta_digest(meta)}))
    with pytest.raises(UserError, match=r"step-5 is damaged: its files do not make up weights/tea"):
        find_latest_checkpoint(tmp_path)
