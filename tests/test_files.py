"""files: a file is whole or absent, and a torn last line is left out."""

import json

import pytest

from mofore.errors import UserError
from mofore.files import append_jsonl, read_jsonl, replace_file, write_json, write_jsonl, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError), replace_file(path) as temporary:
        fail(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_appended_is_read_back(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert read_jsonl(path) == []
    records = [{"step": step, "text": "ü\n"} for step in range(5)]
    for record in records:
        append_jsonl(path, record)
    assert read_jsonl(path) == records
    write_jsonl(path, records[:2])
    assert read_jsonl(path) == records[:2]


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_jsonl(path) == read_jsonl(path, last=9) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"step": 2}')  # complete JSON, but its line end is missing
    assert read_jsonl(path) == [{"step": 1}]


@pytest.mark.parametrize("count", [1, 7, 5000, 6000])
def test_the_last_lines_are_those_of_the_whole_file(tmp_path, count):
    path = tmp_path / "lines.jsonl"
    write_jsonl(path, ({"step": step, "pad": "x" * (step % 300)} for step in range(5000)))
    assert read_jsonl(path, last=count) == read_jsonl(path)[-count:]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"lines.jsonl, line 2, is not JSON .*Remove that line"):
        read_jsonl(path)
