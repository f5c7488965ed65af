"""The report: it shows the content of the files, names missing parts and is self-contained."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from PIL import Image
from PIL.WebPImagePlugin import WebPImageFile

from mofore.data.manifest import read_manifest
from mofore.errors import UserError
from mofore.evaluation.charts import CURVES
from mofore.evaluation.features import load_features, save_features
from mofore.evaluation.forecasting import NO_FORECASTER
from mofore.evaluation.gallery import FRAMES, make_thumbnail
from mofore.evaluation.report import read_metrics, write_report
from tests.evaluation.run_folder import CLASSES, make_run, make_videos


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open.pop() != tag:  # void elements have no end
            pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def webp(uri) -> WebPImageFile:
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert isinstance(image, WebPImageFile)
    return image


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return make_run(
        root / "run <1>", root / "data" / "manifest.parquet", make_videos(root / "data")
    )


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run).read_text())


def test_every_result_is_printed_with_its_interval(run, page):
    results = json.loads((run / "evaluation" / "results.json").read_text())["results"]
    for r in results:
        if r["value"] is not None and r["metric"].startswith(("knn", "retrieval")):
            assert (
                f"{100 * r['value']:.1f} % [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
                in page.text
            )
    assert NO_FORECASTER in page.text


def test_names_from_files_are_escaped(page):
    assert "run <1>" in page.text
    assert "swap <b>" in page.text
    assert "<laptop>" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("b", "laptop", "script")]


def test_the_page_refers_to_nothing_outside_itself(page):
    for _, attributes in page.tags:
        for key in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(key, "data:").startswith(("data:", "#"))
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = {a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")}
    assert links <= targets


def test_images_have_alternative_text_and_tables_have_headers(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(image["alt"] for image in images if image.get("class") != "still")
    assert {attributes.get("scope") for tag, attributes in page.tags if tag == "th"} == {
        "col",
        "row",
        "rowgroup",
    }


def test_thumbnails_are_animated_and_the_page_is_small(run, page):
    animated = [a["src"] for tag, a in page.tags if a.get("class") == "animated"]
    assert len(animated) == 8 * 6
    for uri in animated[:6]:
        image = webp(uri)
        assert image.n_frames == FRAMES
    assert (run / "report.html").stat().st_size < 3e6


def test_a_thumbnail_plays_at_the_speed_of_its_video(run):
    manifest = yaml.safe_load((run / "config.yaml").read_text())["data"]["manifest"]
    image = webp(make_thumbnail(read_manifest(manifest)[0]).animated)
    shown = 0
    for i in range(image.n_frames):
        image.seek(i)
        image.load()
        shown += image.info["duration"]
    assert shown == pytest.approx(2000, rel=0.02)  # 20 frames at 10 a second


def test_the_thumbnail_shows_the_video_with_its_name(run, page):
    manifest = read_manifest(yaml.safe_load((run / "config.yaml").read_text())["data"]["manifest"])
    first = next(attributes for _, attributes in page.tags if attributes.get("class") == "animated")
    row = next(
        row
        for row, video in enumerate(manifest)
        if first["alt"].endswith(video.uri.rsplit("/")[-1])
    )
    assert first["src"] == make_thumbnail(manifest[row]).animated


def test_neighbours_are_marked_by_class(page):
    same = sum(a.get("class") == "same-class" for tag, a in page.tags if tag == "li")
    other = sum(a.get("class") == "other-class" for tag, a in page.tags if tag == "li")
    assert same + other == 8 * 5
    assert page.text.count("same class:") == same


def test_without_labels_neighbours_are_shown_and_not_marked(tmp_path):
    run = make_run(
        tmp_path / "run",
        tmp_path / "manifest.parquet",
        make_videos(tmp_path, groups=1, labelled=False),
    )
    page = Page(write_report(run).read_text())
    assert sum(a.get("class") == "animated" for _, a in page.tags) == 8 * 6
    assert not [
        a for tag, a in page.tags if tag == "li" and a.get("class") in ("same-class", "other-class")
    ]
    assert "Not judged" in page.text


def test_without_an_evaluation_the_page_shows_the_command(tmp_path):
    run = make_run(
        tmp_path / "run",
        tmp_path / "manifest.parquet",
        make_videos(tmp_path, groups=1),
        evaluated=False,
    )
    page = Page(write_report(run).read_text())
    assert f"mofore evaluate {run}" in page.text
    assert {tag for tag, _ in page.tags} >= {"img", "details"}
    assert not [a for tag, a in page.tags if tag == "table" and "caption" in a]


def test_missing_or_changed_videos_are_named_and_the_rest_is_shown(tmp_path):
    rows = make_videos(tmp_path / "data", groups=2)
    run = make_run(tmp_path / "run", tmp_path / "data" / "manifest.parquet", rows)
    for row in rows[-12:]:
        (tmp_path / "data" / row.uri).unlink()
    page = Page(write_report(run).read_text())
    assert "group1-00.mp4: no such file" in page.text
    assert "R@1" in page.text
    make_run(tmp_path / "other", tmp_path / "data" / "manifest.parquet", rows[:20], evaluated=False)
    assert "is not the manifest that was evaluated" in Page(write_report(run).read_text()).text


def test_a_folder_without_config_or_metrics_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl does not exist.*mofore pretrain"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(UserError, match=r"metrics\.jsonl has no step yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_torn_last_line_is_left_out_and_a_damaged_line_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    path.write_text('{"step": 1\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(UserError, match="line 1"):
        read_metrics(path)


def test_a_collapsed_run_has_a_warning(tmp_path):
    run = make_run(tmp_path / "run", tmp_path / "manifest.parquet", make_videos(tmp_path, groups=2))
    path = run / "evaluation" / "features.npz"
    features = load_features(path, ["trained", "untrained"])
    assert features is not None
    features["trained"].view_embeddings[:] = 1
    save_features(path, "key", features, "cpu")
    results = json.loads((run / "evaluation" / "results.json").read_text())
    for one in results["results"]:
        if one["encoder"] == "trained" and one["metric"] == "effective_rank":
            one["value"] = 1.0
    (run / "evaluation" / "results.json").write_text(json.dumps(results))
    text = Page(write_report(run).read_text()).text
    assert "have nearly collapsed" in text
    assert "No map of the trained encoder" in text


def test_maps_intervals_and_curves_are_on_the_page(page):
    alt_texts = " ".join(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    for words in (
        "of the trained encoder",
        "of the untrained encoder",
        "Values with intervals",
        *CURVES,
    ):
        assert words in alt_texts
    for label in CLASSES:
        assert f"{label} 2" in page.text  # the legend, with how many test videos


def test_the_header_names_checkpoint_commits_device_and_precision(page):
    assert "Checkpointstep 300, ab12ab12ab12" in page.text
    assert f"Evaluated at commit{'1' * 12}" in page.text
    assert f"Trained at commit{'0' * 12}" in page.text
    assert "NVIDIA H100 80GB HBM3, bf16" in page.text
