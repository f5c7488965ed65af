"""Reads of other file systems: what may pass is tried again, what is certain is not."""

from collections.abc import Callable

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mofore.data import storage
from mofore.data.storage import DecodeError, fingerprint, load

DATA = bytes(range(100))


@pytest.fixture
def calls(monkeypatch) -> Callable[..., list[int]]:
    """Let the next reads of memory:// fail: calls(error or bytes, ...) -> a list that grows by one
    with each read.
    """
    monkeypatch.setattr(storage, "_read", storage._read.retry_with(wait=lambda state: 0))
    original = MemoryFileSystem.cat_file
    with fsspec.open("memory://storage/a.bin", "wb") as file:
        file.write(DATA)

    def let_fail(*answers: Exception | bytes) -> list[int]:
        pending, made = list(answers), []

        def cat_file(self, *arguments):
            made.append(1)
            answer = pending.pop(0) if pending else None
            if isinstance(answer, Exception):
                raise answer
            return original(self, *arguments) if answer is None else answer

        monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
        return made

    return let_fail


def test_a_failure_that_passes_is_tried_again(calls):
    made = calls(ConnectionResetError("reset"), TimeoutError("slow"), OSError("500"))
    assert load("memory://storage/a.bin").data == DATA
    assert len(made) == 4


def test_a_short_answer_is_tried_again(calls):
    made = calls(DATA[10:15])
    assert load("memory://storage/a.bin", 10, 20).data == DATA[10:30]
    assert len(made) == 2


def test_a_failure_that_stays_is_an_error(calls):
    made = calls(*[ConnectionResetError("reset by peer")] * 9)
    with pytest.raises(DecodeError, match="cannot be read: ConnectionResetError: reset by peer"):
        load("memory://storage/a.bin")
    assert len(made) == storage.READ_ATTEMPTS


@pytest.mark.parametrize(
    ("error", "reason"),
    [(FileNotFoundError("x"), "no such file"), (PermissionError("x"), "no permission to read it")],
)
def test_what_is_certain_is_not_tried_again(calls, error, reason):
    made = calls(error)
    with pytest.raises(DecodeError, match=reason):
        load("memory://storage/a.bin")
    assert len(made) == 1


def test_a_member_past_the_end_is_not_tried_again(calls):
    made = calls()
    with pytest.raises(DecodeError, match="ends inside this member"):
        load("memory://storage/a.bin", 90, 20)
    assert len(made) == 1


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    before = fingerprint(str(path))
    assert before == fingerprint(f"file://{path}") != ""
    path.write_bytes(b"two, longer")
    assert fingerprint(str(path)) not in (before, "")
    assert fingerprint(str(tmp_path / "none")) == ""
    assert fingerprint("nosuchscheme://a/b") == ""
