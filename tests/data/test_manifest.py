"""manifest: rows are read back as written; training reads no annotation; errors name the file."""

import dataclasses
import pickle

import fsspec
import pyarrow.parquet as pq
import pytest

from mofore.data.manifest import (
    VIDEO_COLUMNS,
    Video,
    read_annotations,
    read_manifest,
    write_manifest,
)
from mofore.errors import UserError
from tests import videos


def rows(n=3):
    return [
        videos.row(
            f"a/{i}.mp4", 10 + i, digest=f"{i:064x}", label="run", group=f"g{i}", split="train"
        )
        for i in range(n)
    ]


def test_videos_are_read_back(tmp_path):
    path = tmp_path / "manifest.parquet"
    member = dataclasses.replace(rows()[0], uri="/data/shard.tar", offset=512, size=2048)
    remote = dataclasses.replace(rows()[0], uri="s3://bucket/a.mp4")
    write_manifest(path, [rows()[0], member, remote])
    manifest = read_manifest(path)
    assert len(manifest) == 3
    expected = {name: getattr(rows()[0], name) for name in VIDEO_COLUMNS}
    assert manifest[0] == Video(**expected | {"uri": f"{tmp_path}/a/0.mp4"})
    assert manifest[0].frame_index().times == pytest.approx([i / 24 for i in range(10)])
    assert (manifest[1].uri, manifest[1].offset, manifest[1].size) == ("/data/shard.tar", 512, 2048)
    assert manifest[2].uri == "s3://bucket/a.mp4"
    assert manifest.column("frames").tolist() == [10, 10, 10]
    assert [video.frames for video in manifest] == [10, 10, 10]
    with pytest.raises(IndexError, match="rows 0 to 2"):
        manifest[-1]


def test_relative_uris_are_relative_to_the_manifest(tmp_path):
    write_manifest(tmp_path / "manifest.parquet", rows())
    with fsspec.open("memory://set/manifest.parquet", "wb") as file:
        file.write((tmp_path / "manifest.parquet").read_bytes())
    assert read_manifest("memory://set/manifest.parquet")[1].uri == "memory://set/a/1.mp4"


def test_training_loads_no_annotation(tmp_path):
    path = tmp_path / "manifest.parquet"
    write_manifest(path, rows())
    manifest = read_manifest(path)
    assert not {"label", "group", "split"} & {
        field.name for field in dataclasses.fields(manifest[0])
    }
    for annotation in (b"run", b"g1", b"train"):
        assert annotation not in pickle.dumps(manifest._table)
    with pytest.raises(KeyError):
        manifest.column("label")
    assert read_annotations(path) == (["run"] * 3, ["g0", "g1", "g2"], ["train"] * 3)


def test_the_digest_identifies_the_content(tmp_path):
    """It changes with anything that training reads, not with path, chunks or annotations."""

    def digest(content, name="manifest.parquet", **options):
        write_manifest(tmp_path / name, content)
        if options:
            pq.write_table(pq.read_table(tmp_path / name), tmp_path / name, **options)
        return read_manifest(tmp_path / name).digest

    original = digest(rows())
    assert digest(rows(), "other.parquet") == original
    assert digest(rows(), row_group_size=1) == original
    assert (
        digest([dataclasses.replace(row, label="jump", split=None) for row in rows()]) == original
    )
    others = [rows()[::-1], rows(2)]
    for change in (
        {"digest": "f" * 64},
        {"frames": 11},
        {"fps": 25.0},
        {"uri": "b.mp4"},
        {"offset": 0},
    ):
        others.append([dataclasses.replace(rows()[0], **change), *rows()[1:]])
    digests = {digest(other) for other in others}
    assert len(digests) == len(others)
    assert original not in digests


def test_the_same_rows_give_the_same_file(tmp_path):
    write_manifest(tmp_path / "a", rows())
    write_manifest(tmp_path / "b", rows())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "manifest.parquet"
    write_manifest(path, rows())
    before = path.read_bytes()
    with pytest.raises(Exception, match="frames|integer|int"):
        write_manifest(path, [dataclasses.replace(rows()[0], frames="many")])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.parquet"]


def test_the_error_for_a_missing_manifest_has_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"no manifest at .*none.parquet.*mofore prepare"):
        read_manifest(tmp_path / "none.parquet")


def test_a_folder_is_not_a_manifest(tmp_path):
    with pytest.raises(UserError, match=r"is a folder.*manifest\.parquet"):
        read_manifest(tmp_path)


def test_other_files_are_not_manifests(tmp_path):
    (tmp_path / "a.parquet").write_text("uri\n")
    with pytest.raises(UserError, match="not a Parquet file"):
        read_manifest(tmp_path / "a.parquet")
    write_manifest(tmp_path / "b.parquet", rows())
    table = pq.read_table(tmp_path / "b.parquet")
    pq.write_table(table.drop_columns(["fps", "digest"]), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="no column fps, digest"):
        read_manifest(tmp_path / "c.parquet")
    pq.write_table(table.replace_schema_metadata({"mofore.manifest": "99"}), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="format 99"):
        read_manifest(tmp_path / "d.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "e.parquet")
    with pytest.raises(UserError, match="lists no video"):
        read_manifest(tmp_path / "e.parquet")
    column = table.schema.get_field_index("fps")
    pq.write_table(table.set_column(column, "fps", [["fast"] * 3]), tmp_path / "f.parquet")
    with pytest.raises(UserError, match="wrong type"):
        read_manifest(tmp_path / "f.parquet")
