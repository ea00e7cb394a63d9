"""Every page in Chromium: silent, complete, nothing cut, accessible in both themes. Screenshots go to .browser/."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from html_page import HOSTILE, hostile_report
from lossscope.reports import render

PAGES = ("overview", "sharpness", "dynamics", "flatness", "all", "compare")
PICTURES = Path(__file__).parents[2] / ".browser"
THEMES = ("light", "dark")
EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
OVERFLOWS = """() => ({
    page: document.documentElement.scrollWidth - innerWidth,
    tables: [...document.querySelectorAll(".scroll")].filter((one) => one.scrollWidth > one.clientWidth)
        .map((one) => `${one.ariaLabel}: ${one.scrollWidth} of ${one.clientWidth}`),
    figures: [...document.querySelectorAll("figure")].filter((one) => one.scrollWidth > one.clientWidth).length,
    texts: [...document.querySelectorAll("figure:not(.drawn) > svg")].flatMap((svg) => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter((one) => {
            const box = one.getBoundingClientRect();
            return box.right > frame.right + 1 || box.left < frame.left - 1;
        }).map((one) => one.textContent);
    }),
})"""
INK = """(figure) => {
    const canvas = figure.querySelector("canvas");
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let drawn = 0;
    for (let at = 3; at < data.length; at += 4) drawn += data[at] > 0;
    return drawn;
}"""


def serious(tab: Any) -> list[str]:
    """Return the serious and critical violations that axe-core finds."""
    tab.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = tab.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{one['id']} ({one['impact']}): {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@EVERY_PAGE
def test_a_page_says_nothing_asks_for_nothing_and_draws_its_figures(visit, pages, page):
    opened = visit(page)
    opened.through()
    assert opened.said == []
    assert opened.asked == [pages[page].as_uri()]
    assert opened.tab.evaluate("() => blocked") == []
    drawn = opened.tab.query_selector_all("figure.drawn")
    assert len(drawn) == opened.tab.evaluate("() => Object.keys(lossscope.data.plots).length") > 0
    assert all(figure.evaluate(INK) > 2000 for figure in drawn)
    pictures = opened.tab.query_selector_all("figure:not(.drawn) > svg")
    assert all(picture.is_visible() for picture in pictures)


@EVERY_PAGE
def test_nothing_is_cut_at_1280_pixels(visit, page):
    opened = visit(page)
    opened.through()
    assert opened.tab.evaluate(OVERFLOWS) == {"page": 0, "tables": [], "figures": 0, "texts": []}


@EVERY_PAGE
def test_a_page_is_readable_at_800_pixels(visit, page):
    opened = visit(page, width=800)
    opened.through()
    found = opened.tab.evaluate(OVERFLOWS)
    assert (found["page"], found["figures"], found["texts"]) == (0, 0, [])
    assert opened.tab.evaluate("() => parseFloat(getComputedStyle(document.querySelector('td')).fontSize)") >= 13


@EVERY_PAGE
def test_a_page_is_accessible_in_both_themes(visit, page):
    opened = visit(page, bypass_csp=True)  # for axe-core, which is no part of the page
    opened.through()
    PICTURES.mkdir(exist_ok=True)
    for theme in THEMES:
        opened.tab.emulate_media(color_scheme=theme)
        opened.tab.screenshot(path=PICTURES / f"{page}-{theme}.png", full_page=True)
    opened.tab.eval_on_selector_all("details:not(.menu)", "(all) => all.forEach((one) => { one.open = true; })")
    for theme in THEMES:
        opened.tab.emulate_media(color_scheme=theme)
        assert serious(opened.tab) == [], theme


def test_axe_finds_what_is_wrong(visit):
    opened = visit("overview", bypass_csp=True)
    opened.tab.evaluate("() => { document.querySelector('h1').style.color = '#eeeeee'; }")
    assert any(one.startswith("color-contrast (serious)") for one in serious(opened.tab))


def test_a_page_that_asks_for_something_is_found(visit, pages, tmp_path):
    text = pages["overview"].read_text().replace("<main", '<img src="http://127.0.0.1:9/x.png"><main')
    (tmp_path / "asks.html").write_text(text)
    opened = visit(tmp_path / "asks.html")
    opened.tab.wait_for_function("() => blocked.length > 0")
    assert opened.tab.evaluate("() => blocked") == ["img-src"]
    assert opened.said


@EVERY_PAGE
def test_a_page_is_complete_without_a_script(visit, page):
    opened = visit(page, java_script_enabled=False)
    pictures = opened.tab.query_selector_all("figure > svg")
    assert pictures
    assert all(picture.is_visible() for picture in pictures)
    assert all(table.is_visible() for table in opened.tab.query_selector_all("table.data"))
    assert not opened.tab.query_selector_all("canvas, .chip, .tool")
    opened.tab.click("text=Versions, data, seeds")
    assert opened.tab.is_visible("table.provenance")


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_name_does_nothing(visit, tmp_path, kind):
    (tmp_path / "page.html").write_text(render(hostile_report(HOSTILE[kind]), "html"), encoding="utf-8")
    opened = visit(tmp_path / "page.html")
    opened.through()
    for chip in opened.tab.query_selector_all(".chip"):
        chip.click()
        chip.click()
    opened.tab.hover(".plot")
    opened.tab.focus("th button")
    opened.tab.click("th button")
    assert opened.said == []
    assert len(opened.asked) == 1
    assert opened.tab.evaluate("() => [blocked.length, document.scripts.length, document.styleSheets.length]") == [
        0,
        4,
        2,
    ]
    assert not opened.tab.query_selector_all("main b, main img, main script")
    overflow = opened.tab.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    assert overflow == 0
    PICTURES.mkdir(exist_ok=True)
    opened.tab.screenshot(path=PICTURES / f"hostile-{kind}.png")
