"""The page of `pml report` in a real Chromium: it opens, answers, and runs nothing of a file."""

import shutil

import numpy as np
import pytest
from support import hostile
from support.planted_laws import exponential_cells, grid, result, runs_of, write
from support.sweeps import quick_in
from support.token_tables import token_table, write_run

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

MEGABYTE = 1_000_000
# It asks for nothing by itself; software draws the surface.
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-unsafe-swiftshader"),
)
PHONE, LAPTOP = (390, 844), (1280, 800)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """opened(file, size=, scheme=, script=): the page, whose errors and requests fail the test."""
    contexts = []
    faults = []

    def make(file, size=LAPTOP, scheme="light", script=""):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(script)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda entry: entry.type == "error" and faults.append(entry.text))
        page.on(
            "request",
            lambda asked: asked.url.startswith(("http", "ws")) and faults.append(asked.url),
        )
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready=true]", timeout=60_000)
        return page

    yield make
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The page of two losses, with the tokens of two runs."""
    folder = tmp_path_factory.mktemp("small")
    write(folder / "runs", *grid(), *grid(loss="memft_margin"))
    for seed in (5, 6):
        write_run(folder / "runs", f"tokens{seed}", token_table(), seed=seed)
    assert quick_in(folder, "report", "runs", "draws=50") == 0
    return folder / "runs" / "report.html"


def scroll(page):
    """To the end, so that every section starts."""
    for top in range(0, page.evaluate("document.documentElement.scrollHeight"), 400):
        page.evaluate("(top) => scrollTo(0, top)", top)
        page.wait_for_timeout(60)
    wait_for_surface(page)


def wait_for_surface(page):
    """Until it is drawn, which the page does last of all."""
    page.locator("#law-surface.js-plotly-plot canvas").first.wait_for(timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, LAPTOP])
def test_every_chart_is_drawn_and_nothing_is_wider_than_the_screen(opened, small, size, scheme):
    page = opened(small, size, scheme)
    scroll(page)
    charts = page.locator(".chart").count()
    assert charts == 7
    assert page.locator(".chart .main-svg, .chart canvas").first.is_visible()
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == charts
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


# Of each frame that the browser draws, the charts that are new in it.
FRAMES = """
window.frames_with_charts = [];
const known = new Set();
function look() {
  const charts = [...document.querySelectorAll(".js-plotly-plot")].map((chart) => chart.id);
  const added = charts.filter((id) => !known.has(id));
  added.forEach((id) => known.add(id));
  if (added.length) window.frames_with_charts.push(added);
  requestAnimationFrame(look);
}
requestAnimationFrame(look);
"""
NO_WEBGL = """
const getContext = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
  return kind.startsWith("webgl") ? null : getContext.call(this, kind, ...more);
};
"""


def test_the_surface_comes_after_the_first_view(opened, small):
    page = opened(small, script=FRAMES)
    wait_for_surface(page)
    page.wait_for_timeout(200)
    frames = page.evaluate("window.frames_with_charts")
    place = {chart: index for index, charts in enumerate(frames) for chart in charts}
    # Not in the same frame: the browser has shown the lines by then.
    assert place["law-lines"] < place["law-surface"]

    # Another group's lines, and its surface.
    first_cell = "byId('law-surface').data.at(-1).text[0]"
    before = page.evaluate(first_cell)
    page.select_option("#law-group", "1")
    for _ in range(200):
        page.wait_for_timeout(100)
        if page.evaluate(first_cell) != before:
            break
    assert page.evaluate(first_cell) != before


def test_without_webgl_the_contour_map_stands_in_its_place(opened, small):
    page = opened(small, script=NO_WEBGL)
    page.locator("#law-surface-print").wait_for(state="visible", timeout=60_000)
    assert not page.locator("#law-surface").is_visible()
    assert page.evaluate("byId('law-surface-print').naturalWidth") > 300


def test_a_length_is_answered_by_a_rank(opened, small):
    page = opened(small)
    page.locator("#predictor").scroll_into_view_if_needed()
    page.fill("#predictor-length", "64")
    assert page.inner_text("#predictor-answer").startswith("50 %: rank ")
    assert " · 90 %: rank " in page.inner_text("#predictor-answer")
    for wrong in ("10000000", "64.5", ""):
        page.fill("#predictor-length", wrong)
        assert "type a whole number from" in page.inner_text("#predictor-answer")
    page.fill("#predictor-length", "10000000")
    assert "seqlen=10000000" in page.inner_text("#predictor")


def test_the_step_colours_the_text_and_marks_the_first_failure(opened, small):
    page = opened(small)
    page.locator("#tokens").scroll_into_view_if_needed()
    page.locator("#tokens-text .token").first.wait_for()
    assert page.locator("#tokens-text .token.above").count() == 4
    failure = page.locator("#tokens-text .failure")
    assert failure.count() == 1 and failure.inner_text() == "105"

    # By the keyboard, to the base model.
    page.focus("#tokens-step")
    page.keyboard.press("Home")
    assert page.inner_text("#tokens-step-name") == "0"
    assert page.locator("#tokens-text .token.above").count() == 1
    page.select_option("#tokens-run", "1")
    assert page.inner_text("#tokens-step-name") == "30"


def test_gains_that_are_close_have_marks_to_be_read_by(opened, tmp_path):
    """Four cells without a law, and no round number of a decade between their gains."""
    cells = grid(ranks=(2, 4), lengths=(64, 128))
    for cell, gain in zip(cells, (7.02, 7.15, 7.31, 7.44), strict=True):
        cell |= {"delta_loss": gain, "base_loss": 7.6, "final_loss": 7.6 - gain}
    write(tmp_path / "runs", *cells)
    assert quick_in(tmp_path, "report", "runs", "draws=0") == 0
    page = opened(tmp_path / "runs" / "report.html")
    page.wait_for_selector("#law-lines .ytick text")
    labels = page.locator("#law-lines .ytick text").all_text_contents()
    assert {"7", "7.2", "7.4"} <= set(labels)

    inside = "([low, high]) => decades([low, high]).tickvals.filter((t) => low <= t && t <= high)"
    for ends in ([0.001, 5], [0.3, 9], [1, 2], [6, 8], [2.3, 2.31], [2.3001, 2.3009]):
        assert 3 <= len(page.evaluate(inside, ends)) <= 12
    # One value, and none.
    assert page.evaluate("decades([7]).tickvals.length") > 3
    assert page.evaluate("decades([]).tickvals.length") > 3


def test_groups_measures_and_theme_are_chosen(opened, small):
    page = opened(small)
    page.select_option("#law-group", "1")
    assert page.locator(".note:visible").count() == 1
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != before
    page.locator("#recall").scroll_into_view_if_needed()
    page.select_option("#recall-measure", "2")
    page.locator("#audit-cells summary").click()
    page.fill("#audit-filter", "tokens5")
    assert page.inner_text("#audit-count") == "1 of 42 cells"


def test_a_printed_page_has_everything(opened, small, tmp_path):
    page = opened(small)
    page.pdf(path=str(tmp_path / "page.pdf"), format="A4")
    # Every section was started for it; the surface has a picture on paper, and comes when it may.
    wait_for_surface(page)
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == 7
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


def test_hostile_texts_are_shown_as_text(opened, tmp_path):
    texts = hostile.texts()
    assert len(texts) >= 120
    for number, text in enumerate(texts):
        run = result(2, 32, data=text, setting=f"data.path={text}", seed=number)
        write(tmp_path / "runs" / f"more{number}", run)
    write_run(tmp_path / "runs", "tokens", token_table(), data=hostile.MARKUP[0])
    assert quick_in(tmp_path, "report", "runs", "draws=0") == 0

    page = opened(tmp_path / "runs" / "report.html")
    scroll(page)
    page.locator("#verdict summary").click()
    page.locator("#audit-cells summary").click()
    shown = page.evaluate("document.body.textContent")
    squeezed = " ".join(shown.split())
    assert [text for text in hostile.MARKUP if " ".join(text.split()) not in squeezed] == []
    for index in range(0, len(texts), 10):
        page.select_option("#law-group", str(index))
        page.select_option("#recall-group", str(index))
    assert page.evaluate("window.pwned") is None


def test_five_hundred_cells(opened, tmp_path):
    """Below 6 MB, with the tokens of twelve runs of a thousand."""
    cells = exponential_cells(texts=8)
    assert len(cells) > 500
    write(tmp_path / "runs", *runs_of(cells))
    for number in range(12):
        p = np.random.default_rng(number).random((30, 1000))
        write_run(tmp_path / "runs", f"tokens{number}", token_table(p, p > 0.5, range(30)))
    assert quick_in(tmp_path, "report", "runs", "draws=0") == 0
    file = tmp_path / "runs" / "report.html"
    assert file.stat().st_size < 6 * MEGABYTE
    page = opened(file)
    scroll(page)
    assert page.locator("#tokens-text .token").count() == 1000
