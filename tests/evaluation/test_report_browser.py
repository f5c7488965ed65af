"""The report in a browser: it loads nothing, fits a phone and a desktop, its images work."""

import io

import pytest
from PIL import Image

from mofore.evaluation.report import write_report
from tests.evaluation.run_folder import make_run, make_videos

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    return write_report(
        make_run(root / "run", root / "data" / "manifest.parquet", make_videos(root / "data"))
    )


@pytest.fixture
def visit(browser, report):
    """Opens the report; the page has its console `messages` and the urls of its `requests`."""
    contexts = []

    def open_page(width=1280, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.messages, page.requests = [], []
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_self_contained_and_fits_the_width(visit, report, width, scheme):
    page = visit(width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.messages == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate(
        "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
    )


def test_the_security_policy_blocks_external_files(visit):
    page = visit()
    page.evaluate(
        "document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))"
    )
    page.wait_for_timeout(200)
    assert any("Content Security Policy" in text for text in page.messages)


def pictures(page, count=5):
    """Screenshots of the first thumbnail, 250 ms apart."""
    thumb = page.locator(".thumb").first
    thumb.scroll_into_view_if_needed()
    taken = set()
    for _ in range(count):
        taken.add(thumb.screenshot())
        page.wait_for_timeout(250)
    return taken


def test_thumbnails_can_be_paused_from_the_keyboard(visit):
    page = visit()
    assert len(pictures(page)) > 1
    page.locator("#pause").focus()
    page.keyboard.press("Space")
    assert len(pictures(page)) == 1


def test_reduced_motion_shows_still_thumbnails(visit):
    page = visit(reduced_motion="reduce")
    assert len(pictures(page)) == 1
    assert page.locator(".still").first.is_visible()
    assert not page.locator(".animated").first.is_visible()


def test_a_wide_table_scrolls_in_its_own_box_from_the_keyboard(visit):
    page = visit(375)
    box = page.locator(".scroll").first
    assert box.evaluate("e => e.scrollWidth > e.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert box.evaluate("e => e.scrollLeft") > 0


@pytest.mark.parametrize(("scheme", "darkest", "lightest"), [("light", 60, 250), ("dark", 40, 180)])
def test_charts_follow_the_colour_scheme(visit, scheme, darkest, lightest):
    chart = visit(color_scheme=scheme).locator("#curves ~ .charts img").first
    low, high = Image.open(io.BytesIO(chart.screenshot())).convert("L").getextrema()
    assert low < darkest  # type: ignore[operator]
    assert high > lightest  # type: ignore[operator]
