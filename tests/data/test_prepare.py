"""prepare: a folder or a list becomes a manifest; refused videos are listed with the reason."""

import csv
import hashlib
import multiprocessing
import os
import shutil

import pyarrow.parquet as pq
import pytest

from mofore.data.manifest import read_annotations, read_manifest
from mofore.data.prepare import prepare
from mofore.errors import UserError
from tests import videos


@pytest.fixture(scope="module")
def mixed(short_video, tmp_path_factory):
    """(root, out, Prepared) of a folder of valid videos and one of each kind of invalid file."""
    root, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("out")
    videos.write_copies(
        short_video,
        root,
        "run/b one (1)!.mp4",
        "run/deep/er/a@2.mp4",
        "jump/c.MP4",
        "no class.mp4",
        ".hidden.mp4",
    )
    (root / "run" / "notes.txt").write_text("not a video")
    videos.empty(root / "bad" / "empty.mp4")
    videos.zero_frames(root / "bad" / "zero.avi")
    videos.truncated(root / "bad" / "truncated.avi")
    videos.audio_only(root / "bad" / "sound.mp4")
    videos.garbage(root / "bad" / "noise.mp4")
    videos.one_frame(root / "bad" / "one.mp4")
    os.mkfifo(root / "bad" / "hangs.mp4")  # opening it blocks forever
    (root / "link").symlink_to(root / "run" / "deep")
    (root / "run" / "up").symlink_to(root)  # a loop
    return root, out, prepare(root, out, workers=2, timeout=3)


def test_decodable_videos_become_rows(mixed):
    root, out, prepared = mixed
    manifest = read_manifest(prepared.manifest)
    uris = [video.uri for video in manifest]
    assert uris == sorted(uris)
    names = {os.path.relpath(uri, root) for uri in uris}
    assert {"run/b one (1)!.mp4", "jump/c.MP4", "no class.mp4"} < names
    assert prepared.videos == len(manifest) == 4
    row = pq.read_table(prepared.manifest).to_pylist()[uris.index(str(root / "jump/c.MP4"))]
    assert row["digest"] == hashlib.sha256((root / "jump/c.MP4").read_bytes()).hexdigest()
    assert (row["frames"], row["width"], row["height"]) == (8, 32, 32)
    assert row["fps"] == pytest.approx(24)
    assert row["duration"] == pytest.approx(8 / 24)


def test_the_first_folder_is_the_label(mixed):
    root, _, prepared = mixed
    labels = read_annotations(prepared.manifest).labels
    found = {
        os.path.relpath(video.uri, root): label
        for video, label in zip(read_manifest(prepared.manifest), labels, strict=True)
    }
    assert found["run/b one (1)!.mp4"] == "run"
    assert found["jump/c.MP4"] == "jump"
    assert found["no class.mp4"] is None


def test_refused_files_are_listed_with_their_reasons(mixed):
    root, _, prepared = mixed
    with open(prepared.refused_csv, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["uri"], line["reason"]) for line in lines] == list(prepared.refused)
    reasons = {os.path.relpath(line["uri"], root): line["reason"] for line in lines}
    assert list(reasons) == sorted(reasons)
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "bad/empty.mp4": "empty file",
        "bad/hangs.mp4": "timed out after 3 s",
        "bad/noise.mp4": "not a video or damaged",
        "bad/one.mp4": "one frame",
        "bad/sound.mp4": "no video stream (audio only)",
        "bad/truncated.avi": "cut off",
        "bad/zero.avi": "zero frames",
    }


def test_no_other_file_or_process_remains(mixed):
    _, out, _ = mixed
    assert sorted(os.listdir(out)) == ["damaged.csv", "manifest.parquet", "refused.csv"]
    assert not multiprocessing.active_children()


def test_it_is_reproducible_and_moves_with_its_videos(short_video, tmp_path):
    """Videos below OUT have relative uris, so the whole folder can be moved."""
    data = tmp_path / "data"
    videos.write_copies(short_video, data, "videos/a/1.mp4", "videos/b/2.mp4")
    first = prepare(data / "videos", data, workers=2)
    content, digest = (data / "manifest.parquet").read_bytes(), read_manifest(first.manifest).digest
    assert [video.uri for video in read_manifest(first.manifest)] == [
        str(data / "videos/a/1.mp4"),
        str(data / "videos/b/2.mp4"),
    ]
    prepare(data / "videos", data, workers=1)
    assert (data / "manifest.parquet").read_bytes() == content
    moved = data.rename(tmp_path / "moved")
    manifest = read_manifest(moved / "manifest.parquet")
    assert manifest[0].uri == str(tmp_path / "moved/videos/a/1.mp4")
    assert manifest.digest == digest


def test_a_csv_with_members_labels_groups_and_splits(short_video, tmp_path):
    data = short_video.read_bytes()
    root = tmp_path / "videos"
    videos.write_copies(short_video, root, "x, y.mp4")
    (root / "shard.bin").write_bytes(data + data[:-1] + b"!")
    listing = tmp_path / "list.csv"
    listing.write_text(
        "uri,label,group,split,offset,size\n"
        f"shard.bin,2,g1,train,{len(data)},{len(data)}\n"
        f"shard.bin,1,g2,test,0,{len(data)}\n"
        '"x, y.mp4",run,,,,\n'
        "gone.mp4,run,,,,\n"
    )
    (tmp_path / "classInd.txt").write_text("1 jump\r\n2 run\r\n")
    prepared = prepare(
        root,
        tmp_path / "out",
        listing=str(listing),
        classes=str(tmp_path / "classInd.txt"),
        workers=1,
    )
    manifest, notes = read_manifest(prepared.manifest), read_annotations(prepared.manifest)
    assert [video.offset for video in manifest] == [0, len(data), None]
    assert manifest[1].size == len(data)
    assert notes == (["jump", "run", "run"], ["g2", "g1", None], ["test", "train", None])
    assert prepared.refused == ((str(root / "gone.mp4"), "no such file"),)


def test_duplicates_in_two_splits_are_noted(short_video, tmp_path):
    for name in ("a/1.mp4", "a/2.mp4"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(short_video, tmp_path / "videos" / name)
    (tmp_path / "list.csv").write_text("path,split\na/1.mp4,train\na/2.mp4,test\n")
    prepared = prepare(
        tmp_path / "videos", tmp_path / "out", listing=str(tmp_path / "list.csv"), workers=1
    )
    assert "1 videos are duplicates" in prepared.notes[0]
    assert "1 duplicates are in another split" in prepared.notes[1]


def test_a_random_split_has_no_note_about_lists(short_video, tmp_path):
    videos.write_copies(short_video, tmp_path / "videos", *(f"a/{i}.mp4" for i in range(5)))
    prepared = prepare(tmp_path / "videos", tmp_path / "out", splits=["random-80-20"], workers=1)
    assert sorted(read_annotations(prepared.manifest).splits) == ["test", *["train"] * 4]
    assert len(prepared.notes) == 1
    assert "list" not in prepared.notes[0]


def test_a_name_that_is_not_utf8_is_refused(short_video, tmp_path):
    """Parquet stores text, and such a file name is not text."""
    root = tmp_path / "videos"
    videos.write_copies(short_video, root, "a.mp4", os.fsdecode(b"caf\xe9.mp4"))
    prepared = prepare(root, tmp_path / "out", workers=1)
    assert prepared.videos == 1
    content = (tmp_path / "out" / "refused.csv").read_text()
    assert "caf\\udce9.mp4,the file name is not UTF-8: rename the file" in content


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.touch(), "is not a folder"),
        (lambda root: root.mkdir(), "no video in .* Supported file names end in .mp4"),
        (
            lambda root: videos.garbage(root / "a.mp4"),
            "None of the 1 videos .* not a video or damaged",
        ),
    ],
)
def test_nothing_is_written_without_a_video(tmp_path, make, message):
    make(tmp_path / "videos")
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / "videos", tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_bad_arguments_raise_before_decoding(short_video, tmp_path):
    videos.write_copies(short_video, tmp_path / "videos", "a.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        prepare(tmp_path / "videos", tmp_path / "file" / "out")
    with pytest.raises(UserError, match="workers"):
        prepare(tmp_path / "videos", tmp_path / "out", workers=0)
