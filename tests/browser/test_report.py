"""The report in a real browser: it opens from a file without a network, and draws what it says."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from polytask.evaluation.formatting import percent
from polytask.evaluation.report import write_report
from polytask.evaluation.table import comparison

pytestmark = pytest.mark.browser


@dataclass
class Opened:
    """A page and what went wrong in it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, path: Path, width: int = 1280, scheme: Any = "light") -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    found = Opened(page)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on(
        "console", lambda message: found.errors.append(message.text) if message.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn=true]")
    yield found
    outside = [url for url in found.requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == []
    assert found.errors == []
    context.close()


@pytest.fixture(scope="module")
def folder(run_directories: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report")
    run_directories.write_compare(path / "compare", seeds=5)
    run_directories.write_compare(path / "assays", seeds=2, tasks=12, rules=("equal", "upgrad"))
    run_directories.write_run(path / "run", run_directories.TASKS, run_directories.FINAL, rule="uncertainty")
    run_directories.write_compare(path / "five", seeds=2, tasks=5, rules=("equal", "upgrad"))
    write_report([path / "compare"], path / "compare.html")
    write_report([path / "five"], path / "five.html")
    write_report([path / "assays"], path / "assays.html")
    write_report([path / "run"], path / "run.html")
    write_report([path / "compare", path / "assays", path / "run"], path / "all.html")
    return path


def cells(page: Page, row: str) -> list[str]:
    texts = page.locator(f"tr:has(th[scope=row]:text('{row}')) td").all_inner_texts()
    return [re.sub(r"\s+", " ", text).strip() for text in texts]


def drawn(page: Page) -> list[int]:
    """How many SVG shapes the data of each figure has: lines, points, bars of intervals, or the image of a matrix."""
    script = """figures => figures.map(figure => figure.querySelectorAll(
        'svg.main-svg .scatterlayer path, svg.main-svg .heatmaplayer image').length)"""
    return page.locator("[data-figure]").evaluate_all(script)


def test_comparison_has_its_table_and_figures(browser: Browser, folder: Path) -> None:
    table = comparison(json.loads((folder / "compare" / "results.json").read_text(encoding="utf-8")))
    with opened(browser, folder / "compare.html") as found:
        page = found.page
        headings = [heading.split("\n")[0] for heading in page.locator("thead th[scope=col]").all_inner_texts()]
        expected = ["Variant", "delta-m", "Tasks worse", "left", "right", "sum", "Time", "Parameters", "Learning rate"]
        assert headings == expected
        for row in table.variants:
            shown = cells(page, row.name)
            assert row.delta is not None
            assert shown[0].startswith(percent(row.delta.estimate.mean))
            assert shown[1].startswith(f"{len(row.worse)} of 3")
            for text, score in zip(shown[2:5], row.scores.values(), strict=True):
                assert score.value.mean is not None
                assert score.verdict is not None
                assert text.startswith(f"{score.value.mean:.4g}"[:5])
                assert text.endswith(score.verdict.value)
            assert "422 k" in shown[6]
        assert "by definition" in cells(page, "single")[0]
        assert page.locator("h1").inner_text().startswith("One model for 3 tasks:")
        titles = page.locator("h2").all_inner_texts()
        expected = ["Comparison", "Who gains, who pays", "What it costs", "Learning curves", "Do the gradients agree?"]
        assert titles == [*expected, "Loss weights", "Recipe", "Versions and hardware"]
        counts = drawn(page)
        assert len(counts) == 1 + 1 + 3 + 3 + 2  # changes, cost, a curve a task, cosines and moving weights a variant
        assert min(counts) >= 2
        assert "builtin: multidigits" in page.locator("pre").inner_text()


def test_many_tasks_turn_the_table_and_draw_matrices(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "assays.html") as found:
        assert len(cells(found.page, "assay-07")) == 3
        assert "2 seeds, few" in found.page.locator("table").inner_text()
        counts = drawn(found.page)
        assert len(counts) == 1 + 1 + 12 + 2 + 2 + 1
        assert min(counts) >= 1


def test_a_run_alone(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "run.html") as found:
        assert found.page.locator("h1").inner_text().startswith("One model learned 3 tasks in 8.0 s: left 0.9")
        counts = drawn(found.page)
        assert len(counts) == 3 + 3 + 1 + 1
        assert min(counts) >= 1


def test_several_directories_share_a_page(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "all.html") as found:
        page = found.page
        assert page.locator("h1").inner_text() == "3 results in one page"
        targets = page.locator("nav a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
        assert targets == ["#comparison-1", "#comparison-2", "#runs"]
        assert all(page.locator(target).count() == 1 for target in targets)
        assert min(drawn(page)) >= 1


@pytest.mark.parametrize("name", ["compare", "all"])
def test_phone_has_no_sideways_scrolling(browser: Browser, folder: Path, name: str) -> None:
    with opened(browser, folder / f"{name}.html", width=390) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= 390
        widths = found.page.locator("[data-figure] svg.main-svg").evaluate_all("all => all.map(s => s.clientWidth)")
        assert max(widths) <= 390
        assert min(drawn(found.page)) >= 1


@pytest.mark.parametrize(("name", "width"), [("compare", 1024), ("five", 1200)])
def test_desktop_table_needs_no_scrolling(browser: Browser, folder: Path, name: str, width: int) -> None:
    with opened(browser, folder / f"{name}.html", width=width) as found:
        fits = found.page.locator(".scroll").evaluate_all("all => all.map(s => s.scrollWidth <= s.clientWidth)")
        assert all(fits)


COLOURS = """() => ({
    ground: getComputedStyle(document.body).backgroundColor,
    tick: getComputedStyle(document.querySelector('.xtick text')).fill,
    line: getComputedStyle(document.querySelector('.scatterlayer .js-line')).stroke})"""


def test_dark_mode_changes_page_and_figures(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "run.html") as found:
        light = found.page.evaluate(COLOURS)
        found.page.emulate_media(color_scheme="dark")
        # The page hears of the change with its next frame.
        found.page.wait_for_function(f"before => ({COLOURS})().line !== before", arg=light["line"])
        switched = found.page.evaluate(COLOURS)
    with opened(browser, folder / "run.html", scheme="dark") as found:
        dark = found.page.evaluate(COLOURS)
    assert switched == dark
    assert all(light[key] != dark[key] for key in light)
    lightness = {
        name: sum(map(int, re.findall(r"\d+", colours["ground"])[:3]))
        for name, colours in (("light", light), ("dark", dark))
    }
    assert lightness["dark"] < 150 < 600 < lightness["light"]


def test_print_is_light_even_in_dark_mode(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "run.html", scheme="dark") as found:
        dark = found.page.evaluate(COLOURS)
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        printing = found.page.evaluate(COLOURS)
        found.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert printing["tick"] != dark["tick"]
        assert found.page.evaluate(COLOURS) == dark


def test_figures_and_tables_are_named_for_a_screen_reader(browser: Browser, folder: Path) -> None:
    with opened(browser, folder / "compare.html") as found:
        labels = found.page.locator("[data-figure]").evaluate_all(
            "all => all.map(f => [f.getAttribute('role'), f.getAttribute('aria-label')])"
        )
        assert all(role == "img" and len(label) > 40 for role, label in labels)
        assert found.page.locator("th:not([scope])").count() == 0
        assert found.page.locator("table caption").count() == found.page.locator("table").count()
        assert found.page.locator("[id]").evaluate_all("all => new Set(all.map(e => e.id)).size === all.length")
