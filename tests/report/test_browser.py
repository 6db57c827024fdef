"""The pages in headless Chromium, opened from disk, as narrow as a phone and as wide as a desk, light and dark."""

import contextlib
import dataclasses
import os
import shutil

import pytest

from refine_jax.report import __main__ as program
from refine_jax.report import page as report_page
from tests.report import material as made

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'"
)

EACH = pytest.mark.parametrize(
    ("width", "scheme"), [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
)
# What stands in a row of the comparison is asked of the cells that are seen.
SEEN = """table => [...table.tBodies[0].rows].filter(row => row.checkVisibility()).map(
    row => Object.fromEntries([...table.tHead.rows[0].cells].map(
        (head, column) => [head.textContent, row.cells[column].firstChild.textContent.trim()])))"""
# What has the focus, whether some of it is in the window and covered by nothing, and whether an outline marks it.
FOCUSED = """() => {
    const element = document.activeElement;
    const {left, right, top, bottom} = element.getBoundingClientRect();
    const between = (low, high) => [0.1, 0.3, 0.5, 0.7, 0.9].map(share => low + share * (high - low));
    const seen = between(left, right).some(x => between(Math.max(0, top), Math.min(bottom, innerHeight)).some(
        y => element.contains(document.elementFromPoint(x, y))));
    const {outlineStyle, outlineWidth} = getComputedStyle(element);
    return {text: element.textContent, tag: element.tagName.toLowerCase(), key: element.dataset.key,
            seen, marked: outlineStyle !== "none" && parseFloat(outlineWidth) > 1};
}"""


@pytest.fixture(scope="module")
def browser():
    """Chromium: the one that CHROMIUM names, else an installed one, else playwright's own."""
    named = os.environ.get("CHROMIUM")
    installed = map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    path = named or next(filter(None, installed), None)
    with playwright.sync_playwright() as started:
        if path is None and not os.path.exists(started.chromium.executable_path):
            pytest.skip("no Chromium is installed, and CHROMIUM names none")
        opened = started.chromium.launch(executable_path=path)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a run with every section, and a comparison of three runs of which the first has it as its report."""
    folder = tmp_path_factory.mktemp("pages")
    made.write_runs(folder)
    report_page.write(dataclasses.replace(made.make(), results=made.swept()), folder / "sweep" / "a" / "report")
    comparison = program.main([str(folder / "sweep"), str(folder / "alone"), f"--output={folder / 'comparison'}"])
    return {"run": folder / "sweep" / "a" / "report" / "index.html", "comparison": comparison}


@contextlib.contextmanager
def opened(browser, path, width=1280, scheme="light"):
    """Gives a page, and holds it to having said, asked for and raised nothing in the end."""
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    try:
        page = context.new_page()
        said = []
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: said.append(f"request: {request.url}"))
        page.goto(path.as_uri())
        yield page
        page.wait_for_load_state()
        assert [line for line in said if not line.startswith("request: data:")] == [f"request: {path.as_uri()}"]
    finally:
        context.close()


@pytest.fixture(params=["run", "comparison"])
def path(request, browser, pages):
    return pages[request.param]


@EACH
def test_a_page_is_quiet_fits_its_width_and_shows_its_images(browser, path, width, scheme):
    with opened(browser, path, width, scheme) as page:
        assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [width, width]
        assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).map(image => image.alt)") == []
        red = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
        assert (red < 64) == (scheme == "dark")


@EACH
def test_axe_has_no_serious_findings(browser, path, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with opened(browser, path, width, scheme) as page:
        found = axe.Axe().run(page).response
    assert found["testEngine"]["name"] == "axe-core"
    assert {"color-contrast", "html-has-lang"} <= {rule["id"] for rule in found["passes"]}
    serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in serious] == []


def press(page, *, until, key="Tab", most=40):
    """Presses a key until what has the focus is as wanted; whatever has it on the way is seen, and marked."""
    for _ in range(most):
        page.keyboard.press(key)
        focused = page.evaluate(FOCUSED)
        assert focused["seen"], focused
        assert focused["marked"], focused
        if until(focused):
            return
    raise AssertionError(f"not reached with {most} times {key}")


def test_the_comparison_is_sorted_by_click(browser, pages):
    with opened(browser, pages["comparison"]) as page:
        table = page.locator("table")

        def sort(title):
            page.get_by_role("button", name=title, exact=True).click()
            return [row[title] for row in table.evaluate(SEEN)]

        assert sort("seed") == ["1", "1", "2", "2", "10", "10"]
        assert sort("seed") == ["10", "10", "2", "2", "1", "1"]
        # What is not known stands last both ways.
        assert sort("mapped ASR") == ["33.33"] * 3 + ["-"] * 3
        assert sort("mapped ASR") == ["33.33"] * 3 + ["-"] * 3
        assert sort("BA") == ["20.00", "80.00", "80.00", "80.00", "90.00", "90.00"]
        assert sort("BA") == ["90.00", "90.00", "80.00", "80.00", "80.00", "20.00"]
        assert sort("attack") == ["<i>, adaptive (known)"] * 2 + ["badnets"] * 2 + ["wanet"] * 2
        states = page.locator("th[aria-sort]").evaluate_all("all => all.map(each => each.ariaSort)")
        assert states == ["ascending"]


def test_the_comparison_is_filtered_by_choice(browser, pages):
    with opened(browser, pages["comparison"]) as page:
        shown = page.locator("table")
        assert page.get_by_text("6 of 6 rows").is_visible()
        page.get_by_label("attack").select_option("wanet")
        assert [(row["run"], row["defense"]) for row in shown.evaluate(SEEN)] == [
            ("sweep/b", "no defense"),
            ("sweep/b", "refine"),
        ]
        page.get_by_label("defense").select_option("refine")
        page.get_by_role("button", name="BA", exact=True).click()
        assert [row["run"] for row in shown.evaluate(SEEN)] == ["sweep/b"]
        assert page.get_by_text("1 of 6 rows").is_visible()
        page.get_by_label("attack").select_option("all")
        assert {row["defense"] for row in shown.evaluate(SEEN)} == {"refine"}
        page.get_by_label("defense").select_option("all")
        assert len(shown.evaluate(SEEN)) == 6


@pytest.mark.parametrize("width", [390, 1280])
def test_the_comparison_is_sorted_and_filtered_by_keyboard(browser, pages, width):
    with opened(browser, pages["comparison"], width) as page:
        table = page.locator("table")
        press(page, until=lambda focused: focused["text"] == "To the table")
        press(page, until=lambda focused: focused["key"] == "defense")
        page.keyboard.type("refine")
        assert [row["defense"] for row in table.evaluate(SEEN)] == ["refine"] * 3
        assert page.get_by_text("3 of 6 rows").is_visible()
        press(page, until=lambda focused: focused["text"] == "seed")
        page.keyboard.press("Enter")
        assert [row["seed"] for row in table.evaluate(SEEN)] == ["1", "2", "10"]
        page.keyboard.press("Space")
        assert [row["seed"] for row in table.evaluate(SEEN)] == ["10", "2", "1"]
        press(page, until=lambda focused: focused["key"] == "defense", key="Shift+Tab")
        page.keyboard.press("Home")
        assert len(table.evaluate(SEEN)) == 6
        press(page, until=lambda focused: focused["tag"] == "a")  # to the report of the run that has one


def test_a_table_that_is_too_wide_is_scrolled_by_keyboard(browser, pages):
    with opened(browser, pages["comparison"], 390) as page:
        region = page.get_by_role("region", name="Figures")
        press(page, until=lambda focused: focused["tag"] == "div")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("region => region.scrollLeft > 0", arg=region.element_handle())


def test_a_row_leads_to_the_report_of_its_run(browser, pages):
    with opened(browser, pages["comparison"]) as page:
        target = page.get_by_role("link", name="sweep/a").first.evaluate("link => link.href")
    assert target == pages["run"].as_uri()
