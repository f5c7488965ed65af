"""A second `prepare` decodes only what is new or has changed."""

import json
import os
from pathlib import Path

import pytest

from mofore.data import prepare as module
from mofore.data.known_rows import JOURNAL, read_journal
from mofore.data.manifest import Decoder, read_annotations, read_manifest, read_rows
from mofore.data.prepare import prepare
from tests import videos


@pytest.fixture
def data(short_video, tmp_path) -> Path:
    videos.write_copies(short_video, tmp_path / "videos", "a/1.mp4", "b/2.mp4")
    return tmp_path


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of the files that are decoded, one call of `prepare` after the other."""
    names: list[str] = []
    verify_all = module.verify_all

    def listen(sources, *arguments):
        names.extend(os.path.basename(source.uri) for source in sources)
        return verify_all(sources, *arguments)

    monkeypatch.setattr(module, "verify_all", listen)
    return names


def test_only_new_and_changed_files_are_decoded(data, decoded, short_video):
    first = prepare(data / "videos", data / "out", workers=1)
    before = Path(first.manifest).read_bytes()
    assert decoded == ["1.mp4", "2.mp4"]
    again = prepare(data / "videos", data / "out", workers=1)
    assert decoded == ["1.mp4", "2.mp4"]
    assert Path(again.manifest).read_bytes() == before
    assert "2 videos were verified before and have not changed." in again.notes
    videos.write_copies(short_video, data / "videos", "c/3.mp4")
    changed = data / "videos" / "a" / "1.mp4"
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")  # of the same size
    third = prepare(data / "videos", data / "out", workers=1)
    assert decoded[2:] == ["1.mp4", "3.mp4"]
    (data / "videos" / "b" / "2.mp4").unlink()
    last = prepare(data / "videos", data / "out", workers=1)
    assert (third.videos, last.videos) == (3, 2)
    fresh = prepare(data / "videos", data / "fresh", workers=1)
    assert read_manifest(last.manifest).digest == read_manifest(fresh.manifest).digest


def test_annotations_are_those_of_the_new_call(data, decoded):
    prepare(data / "videos", data / "out", workers=1)
    listing = data / "list.csv"
    listing.write_text("path,label\na/1.mp4,one\nb/2.mp4,two\n")
    prepared = prepare(data / "videos", data / "out", listing=str(listing), workers=1)
    assert read_annotations(prepared.manifest).labels == ["one", "two"]
    assert len(decoded) == 2


def test_another_decoder_decodes_again(data, decoded):
    prepare(data / "videos", data / "out", workers=1)
    prepared = prepare(data / "videos", data / "out", workers=1, decoders=[Decoder.decord])
    assert {row.decoder for row in read_rows(prepared.manifest)} == {Decoder.decord}
    assert len(decoded) == 4


def test_an_interrupted_call_loses_nothing(data, decoded, monkeypatch):
    """The journal's last line may be cut off."""
    verify_all = module.verify_all

    def interrupted(*arguments):
        yield next(verify_all(*arguments))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "verify_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(data / "videos", data / "out", workers=1)
    journal = data / "out" / JOURNAL
    assert [path.name for path in (data / "out").iterdir()] == [JOURNAL]
    (done,) = read_journal(journal)
    with journal.open("a") as file:
        file.write(json.dumps({"uri": "b/2.mp4"})[:9])
    decoded.clear()
    prepared = prepare(data / "videos", data / "out", workers=1)
    assert decoded == ["2.mp4"]
    assert done in read_rows(prepared.manifest)
    assert not journal.exists()
