"""The report in a real browser: nothing is requested or refused, tables work, axe is content."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.report import BeforeAfter, build_report, render_html
from pipeline.report.compare import compare, comparison_html

sys.path.insert(0, str(Path(__file__).parent))

from test_pipeline_report_pages import measured
from tiny_job import arguments, write_job

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
SERIOUS = {"serious", "critical"}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # a container's root may not use the sandbox; the pages are this project's own
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that was done, and one whose gate failed."""
    folder = tmp_path_factory.mktemp("runs")
    job = write_job(folder)
    gate = ["--epochs", "0", "--max-accuracy-drop", "0", "--target-flops", "0.025"]
    wanted: dict[str, tuple[int, list[str]]] = {"run": (0, []), "failed": (12, gate)}
    for name, (code, extra) in wanted.items():
        done = CliRunner().invoke(main, arguments(job, folder / name, "-q", *extra))
        assert done.exit_code == code, done.output
    return {name: folder / name / "report.html" for name in wanted}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    both = [("one", build_report(measured())), ("two", build_report(measured(0.88, 2.0)))]
    texts = {
        "met": render_html(build_report(measured())),
        "missed": render_html(build_report(measured(max_accuracy_drop=0.5))),
        "compared": comparison_html(compare(both)),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text)
    return {name: folder / f"{name}.html" for name in texts} | runs


def opened(browser: Any, page: Path, **context: Any) -> tuple[Any, list[str]]:
    """The page, and everything that it complained of or asked for beside its own file."""
    view = browser.new_context(**context).new_page()
    said: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: said.append(request.url))
    view.goto(page.as_uri())
    said.remove(page.as_uri())
    return view, said


@pytest.mark.parametrize("name", ["met", "missed", "compared", "run", "failed"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_the_page_is_quiet_accessible_and_no_wider_than_the_screen(
    browser: Any, pages: dict[str, Path], name: str, scheme: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is missing")
    size = {"width": width, "height": 800}
    _, said = opened(browser, pages[name], color_scheme=scheme, viewport=size)
    assert said == []
    # axe is put into the page, which the page's own policy forbids
    view, said = opened(browser, pages[name], color_scheme=scheme, viewport=size, bypass_csp=True)
    for details in view.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    found = axe.Axe().run(view).response["violations"]
    assert [v["id"] for v in found if v["impact"] in SERIOUS] == []
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []


def test_the_policy_lets_the_pages_own_script_run_and_no_other(
    browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    view, said = opened(browser, pages["met"])
    assert said == []
    assert view.locator("#theme").is_visible()
    hostile = tmp_path / "hostile.html"
    foreign = "<script>document.title = 'taken'</script></body>"
    hostile.write_text(pages["met"].read_text().replace("</body>", foreign))
    view, said = opened(browser, hostile)
    assert view.title() != "taken"
    assert "Content Security Policy" in said[0]


def test_groups_are_sorted_by_a_click_or_a_key_and_say_so(
    browser: Any, pages: dict[str, Path]
) -> None:
    view, _ = opened(browser, pages["met"])
    table = view.locator("#groups-table")
    names = table.locator("tbody th")
    after = table.locator("thead th", has_text="After")
    assert names.all_inner_texts() == ["a", "b", "c"]
    after.locator("button").focus()
    view.keyboard.press("Enter")
    assert after.get_attribute("aria-sort") == "ascending"
    assert names.all_inner_texts() == ["a", "b", "c"]
    after.locator("button").click()
    assert after.get_attribute("aria-sort") == "descending"
    assert names.all_inner_texts() == ["b", "c", "a"]  # 8, 8, 4


def test_figures_are_sorted_as_numbers_whatever_their_unit(browser: Any, tmp_path: Path) -> None:
    sizes = {"small": 999, "large": 1_000_000, "middle": 20_500}
    runs = [
        (name, build_report(measured(size_bytes=BeforeAfter(before=2_000_000, after=size))))
        for name, size in sizes.items()
    ]
    page = tmp_path / "page.html"
    page.write_text(comparison_html(compare(runs)))
    view, _ = opened(browser, page)
    table = view.locator("table").first
    table.get_by_role("button", name="Size").click()
    assert table.locator("tbody th").all_inner_texts() == ["small", "middle", "large"]
    history = {"metric": "top1", "samples": 9, "in_points": True, "higher_is_better": True}
    points = [
        {"name": name, "kind": "tick", "flops_kept": kept, "value": 0.5}
        for name, kept in (("a", 0.0925), ("b", 1.0), ("c", 0.095))
    ]
    page.write_text(render_html(build_report(measured(history=history | {"points": points}))))
    view, _ = opened(browser, page)
    view.locator("details").first.evaluate("element => { element.open = true; }")
    table = view.locator("details table").first
    table.get_by_role("button", name="FLOPs kept").click()
    assert table.locator("tbody th").all_inner_texts() == ["a", "c", "b"]


def test_groups_are_filtered_by_words_and_by_state(browser: Any, pages: dict[str, Path]) -> None:
    view, _ = opened(browser, pages["met"])
    rows = view.locator("#groups-table tbody tr:visible")
    count = view.locator("#filter-count")
    assert (rows.count(), count.inner_text()) == (3, "3 of 3 groups")
    view.locator("#filter-state").select_option("frozen")
    assert (rows.count(), count.inner_text()) == (1, "1 of 3 groups")
    assert "an <output>" in rows.first.inner_text()
    view.locator("#filter-state").select_option("all")
    view.locator("#filter-text").fill("AN <OUT")
    assert rows.count() == 1


def test_colours_follow_the_system_and_the_switch(browser: Any, pages: dict[str, Path]) -> None:
    view, _ = opened(browser, pages["met"], color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert view.evaluate(colour) == "rgb(13, 17, 23)"
    view.get_by_role("button", name="Light colours").click()
    assert view.evaluate(colour) == "rgb(255, 255, 255)"
    assert view.get_by_role("button", name="Dark colours").is_visible()
    view.emulate_media(media="print", color_scheme="dark")
    assert not view.locator("#filters").is_visible()


def test_the_keyboard_reaches_the_skip_link_first(browser: Any, pages: dict[str, Path]) -> None:
    view, _ = opened(browser, pages["missed"])
    view.keyboard.press("Tab")
    assert view.evaluate("document.activeElement.textContent") == "Skip to the result"
    view.keyboard.press("Enter")
    assert view.evaluate("document.activeElement.id") == "main"


def test_paper_has_light_colours_and_all_figures(browser: Any, pages: dict[str, Path]) -> None:
    view, _ = opened(browser, pages["met"], color_scheme="dark")
    view.emulate_media(media="print", color_scheme="dark")
    assert view.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    view.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert view.locator("details:not([open])").count() == 0
    view.evaluate("dispatchEvent(new Event('afterprint'))")
    assert view.locator("details[open]").count() == 0
