"""`mofore data show` and `views`: what the pages show is what the files and a run have."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mofore.config import PretrainConfig, compose
from mofore.data.manifest import read_manifest
from mofore.data.prepare import prepare
from mofore.launch.cli import main
from mofore.launch.data_show import read_sheet
from mofore.launch.data_statistics import (
    count_refused,
    count_values,
    describe_totals,
    read_columns,
)
from mofore.launch.data_views import FRAMES_IN_A_ROW, SPACE, first_batches, join_frames
from mofore.startup import load_batches
from tests.small import SMALL
from tests.videos import STEP, garbage, numbered_frames, write_video


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of grey videos of 2 s, 1 s and 1 s in the classes `a` and `<b>`; two are refused.

    The first of `<b>` is removed after `prepare`.
    """
    root = tmp_path_factory.mktemp("pages") / "videos"
    write_video(root / "a" / "long.mp4", numbered_frames(48))
    write_video(root / "<b>" / "gone.mp4", numbered_frames(24, 48, 80))
    write_video(root / "<b>" / "wide.mp4", numbered_frames(24, 48, 96))
    for name in ("noise1.mp4", "noise2.mp4"):
        garbage(root / "a" / name)
    done = prepare(root, root.parent / "data", splits=["random-80-20"], workers=1)
    assert len(done.refused) == 2
    (root / "<b>" / "gone.mp4").unlink()
    return Path(done.manifest)


def test_statistics_are_those_of_the_manifest(dataset: Path) -> None:
    table = read_columns(str(dataset))
    totals = dict(describe_totals(table))
    assert totals["Videos"] == "3"
    assert totals["Duration"] == "0.1 minutes"
    assert totals["Frames"] == "96"
    assert totals["Frames that do not decode"] == "none"
    counts = {each.title: each for each in count_values(table)}
    sizes = [(count.value, count.videos) for count in counts["Frame sizes"].counts]
    assert sizes == [("64 x 64", 1), ("80 x 48", 1), ("96 x 48", 1)]
    assert [tuple(count) for count in counts["Frame rates"].counts] == [("24", 3, "")]
    assert [tuple(count) for count in counts["Labels"].counts] == [("<b>", 2, ""), ("a", 1, "")]
    assert sum(count.videos for count in counts["Splits"].counts) == 3
    assert sum(count.videos for count in counts["Decoders"].counts) == 3
    refused = count_refused(str(dataset))
    assert refused is not None
    assert refused.videos == 2
    assert [count.videos for count in refused.counts] == [2]
    assert refused.counts[0].example.endswith("noise1.mp4")


def test_reasons_that_differ_in_numbers_are_one(tmp_path: Path) -> None:
    lines = ["uri,reason", "a.mp4,took 61 s", 'b.mp4,"took 62.5 s"', "c.mp4,empty"]
    (tmp_path / "refused.csv").write_text("\n".join(lines))
    refused = count_refused(str(tmp_path / "manifest.parquet"))
    assert refused is not None
    assert [tuple(each) for each in refused.counts] == [
        ("took N s", 2, "a.mp4"),
        ("empty", 1, "c.mp4"),
    ]
    (tmp_path / "refused.csv").unlink()
    assert count_refused(str(tmp_path / "manifest.parquet")) is None


def test_the_sheet_has_middle_frames_and_reasons(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    frames = read_sheet(manifest, read_columns(str(dataset)), 48, seed=0)
    assert [frame.row for frame in frames] == [0, 1, 2]
    gone, wide, long = frames
    assert gone.image is None
    assert gone.reason == "no such file"
    assert (gone.label, wide.label, long.label) == ("<b>", "<b>", "a")
    for frame, middle, size in ((long, 24, (64, 64)), (wide, 12, (96, 48))):
        image = pixels_of(str(frame.image))
        assert image.shape == (size[1], size[0], 3)
        assert abs(image.mean() - (8 + STEP * middle)) < STEP / 2
    again = [read_sheet(manifest, read_columns(str(dataset)), 2, seed) for seed in range(8)]
    assert len({tuple(frame.row for frame in sheet) for sheet in again}) > 1


def pixels_of(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_show(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "data.html"
    assert main(["data", "show", str(dataset), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"1 of the 3 videos on the page failed to decode.\npage: {out}\n"
    )
    page = out.read_text()
    assert "no such file" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count("data:image/webp") == 2


def test_videos_that_have_moved(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    moved, out = tmp_path / "moved", tmp_path / "data.html"
    shutil.copytree(dataset.parent.parent / "videos", moved)
    write_video(moved / "a" / "long.mp4", numbered_frames(24))  # of another size
    assert main(["data", "show", str(dataset), "--out", str(out), "--root", str(moved)]) == 0
    assert capsys.readouterr().out.startswith("2 of the 3 videos")
    keys = [*SMALL, f"data.manifest={dataset}", f"data.root={tmp_path}/none", "global_batch=2"]
    assert main(["data", "views", *keys, "--out", str(out)]) == 2
    assert f"{tmp_path}/none/" in capsys.readouterr().err


def run_config(manifest: Path, *overrides: str) -> PretrainConfig:
    fixed = [*SMALL, f"data.manifest={manifest}", "data.augment.static_noise=0.5"]
    return compose(PretrainConfig, [*fixed, *overrides])


def test_views_are_the_samples_of_a_run(manifest: Path) -> None:
    """Six samples: the first step of four, and half of the second."""
    config = run_config(manifest, "micro_batch=1")
    videos = read_manifest(manifest)
    shown = list(first_batches(config, videos, 6))
    assert [step for step, _ in shown] == [0, 0, 0, 0, 1, 1]
    loaded = load_batches(config, videos, np.arange(len(videos)), 0, torch.device("cpu"))
    for (_, batch), expected in zip(shown, loaded, strict=False):
        for name, tensor, other in zip(batch._fields, batch, expected, strict=True):
            assert torch.equal(tensor, other), name


@pytest.mark.parametrize(("frames", "side", "shown"), [(4, 16, 128), (20, 100, 100), (2, 224, 160)])
def test_frames_of_a_clip_lie_side_by_side(frames: int, side: int, shown: int) -> None:
    clip = torch.randint(0, 256, (3, frames, side, side), dtype=torch.uint8)
    sheet = np.asarray(join_frames(clip))
    for number in range(frames):
        top, left = (place * (shown + SPACE) for place in divmod(number, FRAMES_IN_A_ROW))
        found = sheet[top : top + shown, left : left + shown]
        assert (found[..., 3] == 255).all()
        expected = clip[:, number].permute(1, 2, 0).numpy()
        if shown >= side:
            factor = shown // side
            assert np.array_equal(found[::factor, ::factor, :3], expected)
        else:
            assert abs(found[..., :3].mean() - expected.mean()) < 1
    assert (sheet[:shown, shown : shown + SPACE, 3] == 0).all()


def test_views_as_page_and_as_image(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [*SMALL, f"data.manifest={manifest}"]
    assert main(["data", "views", *keys]) == 0
    page = Path("views.html").read_text()
    assert page.count('<section class="sample">') == 8
    assert page.count("data:image/webp") == 8 * 3  # a context and two targets
    config = compose(PretrainConfig, keys)
    for step, batch in first_batches(config, read_manifest(manifest), 8):
        assert f"row {int(batch.rows)} of the manifest, step {step}" in page
        assert page.count(f"target, {batch.gaps[0, 1].item():.2f} s after the context") >= 1
    assert main(["data", "views", *keys, "--samples", "2", "--out", "some.png"]) == 0
    with Image.open("some.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["show", "none.parquet"], "no manifest at none.parquet"),
        (["show", "none.parquet", "--videos", "-1"], "--videos -1"),
        (["show", "none.parquet", "--out", "missing/page.html"], "no folder missing"),
        (["show", "none.parquet", "--out", "."], "is a folder"),
        (["views"], "data.manifest"),
        (["views", "data.manifest=none.parquet", "--samples", "0"], "--samples 0"),
        (["views", "data.manifest=none.parquet", "--out", "page.jpg"], ".html or .png"),
    ],
)
def test_mistakes(
    argv: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", *argv]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["show", "views"])
def test_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  mofore data {command} " in text
    assert ("data.augment.static_noise" in text) == (command == "views")
    assert re.search(r"--out FILE +page to write, \.html", text)


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_load_nothing_and_fit_the_width(
    browser, dataset: Path, manifest: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    show, views = tmp_path / "show.html", tmp_path / "views.html"
    assert main(["data", "show", str(dataset), "--out", str(show)]) == 0
    keys = [*SMALL, f"data.manifest={manifest}", "--samples", "2", "--out", str(views)]
    assert main(["data", "views", *keys]) == 0
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path, images in ((show, 5), (views, 6)):
        page, messages, requests = context.new_page(), [], []
        page.on("console", lambda message, found=messages: found.append(message.text))
        page.on("request", lambda request, found=requests: found.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert messages == []
        assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
        loaded = "[...document.images].filter(image => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(f"{loaded}.length") == images
    context.close()
