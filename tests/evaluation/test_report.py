"""The report: what is printed is what the files say, missing pieces are named, and the file stands alone."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluation import charts, table
from evaluation.gallery import FRAMES, Embedded, choose_queries, neighbours, thumbnail
from evaluation.report import read_metrics, write_report
from mofore.data.manifest import read_manifest
from mofore.errors import UserError
from tests.evaluation.run_folder import CLASSES, make_run, make_videos


def result(encoder, metric, value, low=None, high=None, protocol="p", note=None, n=10):
    return dict(
        encoder=encoder, metric=metric, value=value, low=low, high=high, n=n, protocol=protocol, note=note
    )


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
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


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return make_run(root / "run <1>", root / "data" / "manifest.parquet", make_videos(root / "data"))


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run).read_text())


def test_every_result_is_printed_with_its_interval(run, page):
    results = json.loads((run / "evaluation" / "results.json").read_text())["results"]
    for r in results:
        if r["value"] is not None and r["metric"].startswith(("knn", "retrieval")):
            assert f"{100 * r['value']:.1f} % [{100 * r['low']:.1f}, {100 * r['high']:.1f}]" in page.text
    assert "a baseline without a forecaster" in page.text


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


def test_every_picture_has_words_and_tables_have_headers(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all(image["alt"] for image in images if image.get("class") != "still")
    assert {attributes.get("scope") for tag, attributes in page.tags if tag == "th"} == {
        "col",
        "row",
        "rowgroup",
    }


def test_thumbnails_move_and_the_page_stays_small(run, page):
    moving = [a["src"] for tag, a in page.tags if a.get("class") == "moving"]
    assert len(moving) == 8 * 6
    for uri in moving[:6]:
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        assert image.format == "WEBP"
        assert image.n_frames == FRAMES
    assert (run / "report.html").stat().st_size < 3e6


def test_a_thumbnail_plays_at_the_speed_of_its_video(run):
    manifest = yaml.safe_load((run / "config.yaml").read_text())["data"]["manifest"]
    image = Image.open(
        io.BytesIO(base64.b64decode(thumbnail(read_manifest(manifest)[0]).moving.partition(",")[2]))
    )
    shown = 0
    for i in range(image.n_frames):
        image.seek(i)
        image.load()
        shown += image.info["duration"]
    assert shown == pytest.approx(2000, rel=0.02)  # 20 frames at 10 a second


def test_neighbours_are_right_exactly_where_the_class_is_the_same(page):
    right = sum(a.get("class") == "right" for tag, a in page.tags if tag == "li")
    wrong = sum(a.get("class") == "wrong" for tag, a in page.tags if tag == "li")
    assert right + wrong == 8 * 5
    assert page.text.count("same class:") == right


def test_without_labels_neighbours_are_shown_and_not_judged(tmp_path):
    run = make_run(
        tmp_path / "run", tmp_path / "manifest.parquet", make_videos(tmp_path, groups=1, labelled=False)
    )
    page = Page(write_report(run).read_text())
    assert sum(a.get("class") == "moving" for _, a in page.tags) == 8 * 6
    assert not [a for tag, a in page.tags if tag == "li" and a.get("class") in ("right", "wrong")]
    assert "is not judged here" in page.text


def test_without_an_evaluation_the_command_is_named(tmp_path):
    run = make_run(
        tmp_path / "run", tmp_path / "manifest.parquet", make_videos(tmp_path, groups=1), evaluated=False
    )
    page = Page(write_report(run).read_text())
    assert f"mofore evaluate run={run}" in page.text
    assert {tag for tag, _ in page.tags} >= {"img", "details"}
    assert not [a for tag, a in page.tags if tag == "table" and "caption" in a]


def test_missing_or_changed_videos_are_named_and_the_rest_stands(tmp_path):
    rows = make_videos(tmp_path / "data", groups=4)
    run = make_run(tmp_path / "run", tmp_path / "data" / "manifest.parquet", rows)
    (tmp_path / "data" / rows[-1].uri).unlink()
    for row in rows[-12:-1]:
        (tmp_path / "data" / row.uri).unlink()
    page = Page(write_report(run).read_text())
    assert "group3-00.mp4: no such file" in page.text
    assert "R@1" in page.text
    make_run(tmp_path / "other", tmp_path / "data" / "manifest.parquet", rows[:20], evaluated=False)
    assert "has changed since the evaluation" in Page(write_report(run).read_text()).text


def test_a_folder_that_is_no_run_or_has_no_metrics_says_so(tmp_path):
    with pytest.raises(UserError, match=r"config\.yaml"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl.*mofore pretrain"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_torn_last_line_is_left_out_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    path.write_text('{"step": 1\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(UserError, match="line 1"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("trained", "kind", "words"),
    [
        ((0.5, 0.45, 0.55), "better", "above untrained beyond"),
        ((0.35, 0.25, 0.45), "unclear", "No difference from untrained can be claimed"),
        ((0.1, 0.05, 0.15), "worse", "BELOW"),
    ],
)
def test_the_verdict_claims_only_what_the_intervals_allow(trained, kind, words):
    results = [
        result("trained", "knn_accuracy", *trained),
        result("untrained", "knn_accuracy", 0.3, 0.2, 0.4),
    ]
    verdict = table.verdict(results)
    assert verdict.kind == kind
    assert words in verdict.lines[0]


def test_beating_untrained_is_no_victory_below_the_pixels():
    results = [
        result("trained", "retrieval_r1", 0.5, 0.45, 0.55),
        result("untrained", "retrieval_r1", 0.3, 0.2, 0.4),
        result("pixels", "retrieval_r1", 0.6, 0.56, 0.64),
    ]
    verdict = table.verdict(results)
    assert verdict.kind == "unclear"
    assert "Not above the stronger of pixels" in verdict.lines[-1]


def test_no_interval_no_claim():
    results = [result("trained", "knn_accuracy", 0.9), result("untrained", "knn_accuracy", 0.1)]
    assert "not judged" in table.verdict(results).lines[0]


def test_the_best_of_a_row_is_marked_where_one_direction_is_better():
    results = [
        result("trained", "forecast_relative", 0.8),
        result("untrained", "forecast_relative", 0.9),
        result("trained", "same_video_cosine", 0.9),
        result("untrained", "same_video_cosine", 0.99),
        result("trained", "a_new_number", 1.0),
        result("pixels", "a_new_number", None, note="not for pixels"),
    ]
    laid = table.table(results)
    best = {row.label: [cell.best for cell in row.cells] for rows in laid.groups.values() for row in rows}
    assert best["forecast / persistence"] == [True, False, False]
    assert best["same-video cosine"] == best["a new number"] == [False] * 3
    assert "pixels: not for pixels" in laid.footnotes
    assert laid.groups["Other"][0].cells[2].value is None


def test_one_metric_under_two_protocols_is_two_rows():
    results = [
        result("trained", "retrieval_r1", v, protocol=p) for v, p in ((0.5, "all"), (0.4, "other groups"))
    ]
    labels = [row.label for row in table.table(results).groups["Retrieval"]]
    assert labels == ["R@1 (all)", "R@1 (other groups)"]


def test_collapse_is_named():
    assert table.collapse_warning(60.0, 0.9, 192) is None
    assert "effective rank 1.20 of 192" in table.collapse_warning(1.2, 0.9, 192)
    assert "deviation 0.010" in table.collapse_warning(None, 0.01, None)


def test_a_collapsed_run_is_reported_as_such(tmp_path):
    run = make_run(tmp_path / "run", tmp_path / "manifest.parquet", make_videos(tmp_path, groups=2))
    path = run / "evaluation" / "features.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["trained/embeddings"] = np.ones_like(arrays["trained/embeddings"])
    np.savez(path, **arrays)
    results = json.loads((run / "evaluation" / "results.json").read_text())
    for one in results["results"]:
        if one["encoder"] == "trained" and one["metric"] == "effective_rank":
            one["value"] = 1.0
    (run / "evaluation" / "results.json").write_text(json.dumps(results))
    text = Page(write_report(run).read_text()).text
    assert "all but collapsed" in text
    assert "No map of the trained encoder" in text


def test_queries_follow_a_rule_that_knows_no_outcome():
    labels = np.array(list("abcabcabc"))
    parts = np.array(["train"] * 3 + ["test"] * 6)
    embedded = Embedded(np.arange(9), np.random.default_rng(0).normal(size=(9, 4)), labels, labels, parts)
    chosen, _ = choose_queries(embedded, 4)
    assert chosen.tolist() == [
        3,
        6,
        4,
        5,
    ]  # the first test video of each class, then the second of the first class
    assert choose_queries(embedded, 2)[0].tolist() == [3, 5]


def test_neighbours_come_from_train_or_else_from_other_groups():
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [1, 0.2]], np.float32)
    labels, groups = np.array(["a"] * 4), np.array(["g", "g", "h", "i"])
    split = Embedded(np.arange(4), vectors, labels, groups, np.array(["test", "train", "train", ""]))
    assert [row for row, _ in neighbours(split, 0)] == [1, 2]
    whole = Embedded(np.arange(4), vectors, labels, groups, np.array([""] * 4))
    found = neighbours(whole, 0)
    assert [row for row, _ in found] == [3, 2]
    assert found[0][1] == pytest.approx(1 / np.sqrt(1.04))


def test_a_hundred_classes_keep_their_own_marks_or_share_grey():
    labels = [f"class {i:03d}" for i in range(48)]
    legend = charts.legend_of(labels)
    assert len({(entry.colour, entry.points) for entry in legend}) == 48
    many = charts.legend_of([f"class {i:03d}" for i in range(101)])
    assert many[-1].label == "53 other classes"
    assert sum(entry.count for entry in many) == 101


def test_the_map_is_the_same_each_time_and_says_how_it_was_made():
    vectors = np.random.default_rng(0).normal(size=(70, 12)).astype(np.float32)
    first, method = charts.project(vectors)
    assert "t-SNE" in method
    np.testing.assert_array_equal(first, charts.project(vectors)[0])
    assert charts.project(vectors[:20])[1] == "PCA"
    assert charts.project(vectors[:20, :1])[0].shape == (20, 2)
    assert len(charts.mapped_rows(10**5)) == charts.MOST_MAPPED


def test_curves_leave_out_what_was_not_logged_or_is_not_finite():
    lines = [{"step": i, "loss": 1.0 / i, "grad_norm": float("nan")} for i in range(1, 5000)]
    pictures = charts.curves(lines)
    assert [picture.title for picture in pictures] == ["Loss"]
    assert "from 1 to 0.0002" in pictures[0].alt
    assert len(pictures[0].uri) < 100_000
    assert charts.curves([{"step": 1, "loss": 1.0}])[0].alt.startswith("Loss, steps 1 to 1")


def test_classes_of_the_fixture_are_in_the_legend(page):
    assert all(name in page.text for name in CLASSES)
