"""What a reader can do on a page: sort, hide arms and layers, read values, zoom, change the theme, print."""

from __future__ import annotations

import re

import pytest

from lossscope.reports import overview

COLORED = """([figure, name]) => {
    const probe = document.body.appendChild(document.createElement("span"));
    probe.style.color = `var(--hue-${name})`;
    const color = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    const canvas = figure.querySelector("canvas");
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let found = 0;
    for (let at = 0; at < data.length; at += 4) {
        found += data[at + 3] > 200 && color.every((one, part) => Math.abs(one - data[at + part]) < 8);
    }
    return found;
}"""


def column(tab, table, place):
    return tab.eval_on_selector_all(
        f"#{table} tbody tr", f"(rows) => rows.map((row) => row.cells[{place}].textContent)"
    )


def first(cell):
    """Return the first number of a cell."""
    return float(re.match(r"[-\d.e+]+", cell).group())


@pytest.fixture
def sharpness(visit):
    return visit("sharpness").tab


def test_a_click_on_a_head_sorts_up_down_and_back(sharpness):
    table = sharpness.evaluate(
        "() => [...document.querySelectorAll('section')].find((one) => one.querySelector('tr:nth-child(4)')).id"
    )
    heads = sharpness.query_selector_all(f"#{table} th")
    place = next(
        at
        for at, head in enumerate(heads)
        if "words" not in (head.get_attribute("class") or "") and len(set(column(sharpness, table, at))) > 1
    )
    before = column(sharpness, table, place)
    for order in ("ascending", "descending", "none"):
        sharpness.click(f"#{table} th:nth-child({place + 1}) button")
        assert heads[place].get_attribute("aria-sort") == order
        now = column(sharpness, table, place)
        numbers = [first(cell) for cell in now if cell != "–"]
        assert now[len(numbers) :] == ["–"] * (len(now) - len(numbers)) or order == "none"
        expected = {"ascending": sorted(numbers), "descending": sorted(numbers, reverse=True), "none": numbers}
        assert numbers == expected[order]
    assert column(sharpness, table, place) == before


def test_the_keyboard_sorts_and_one_head_at_a_time_is_sorted(sharpness):
    buttons = sharpness.query_selector_all("table.data >> nth=0 >> th button")
    for button in buttons[:2]:
        button.focus()
        sharpness.keyboard.press("Enter")
    sorts = sharpness.eval_on_selector_all("table.data th", "(heads) => heads.map((one) => one.ariaSort)")
    assert sorts[:3] == ["none", "ascending", "none"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12.0 ± 0.5 [11, 13]", 12.0),
        ("(1.23 ± 0.05)e-07", 1.23e-7),
        ("1.5e-05", 1.5e-5),
        ("-3.5", -3.5),
        ("6.1 %", 6.1),
    ],
)
def test_cells_are_sorted_by_their_number(sharpness, text, value):
    sharpness.evaluate(
        """(text) => {
            const body = document.querySelectorAll("table.data tbody")[1];
            body.rows[0].cells[body.rows[0].cells.length - 1].textContent = text;
        }""",
        text,
    )
    last = sharpness.query_selector_all("table.data >> nth=1 >> th button")[-1]
    last.click()
    cells = sharpness.eval_on_selector_all(
        "table.data >> nth=1 >> tbody tr", "(rows) => rows.map((one) => one.cells[one.cells.length - 1].textContent)"
    )
    there = [value if cell == text else first(cell) for cell in cells if cell != "–"]
    assert there == sorted(there)


def test_an_arm_is_hidden_in_rows_columns_and_figures_and_shown_again(visit):
    opened = visit("all")
    opened.through()
    tab = opened.tab
    loss = tab.query_selector("#loss")
    inks = [tab.evaluate(COLORED, [loss, arm]) for arm in (0, 1)]
    assert min(inks) > 50
    assert tab.locator("tr[data-arm='0']:visible").count() > 0
    cells = tab.locator("#table-summary td:visible").count()
    tab.click("#tools [data-shows-arm='0']")
    assert tab.get_attribute("#loss [data-shows-arm='0']", "aria-pressed") == "false"
    assert tab.evaluate(COLORED, [loss, 0]) < 10
    assert tab.evaluate(COLORED, [loss, 1]) >= inks[1]
    assert tab.locator("tr[data-arm='0']:visible").count() == 0
    assert tab.locator("tr[data-arm='1']:visible").count() > 0
    assert tab.locator("#table-summary td:visible").count() == cells * 3 // 4
    tab.emulate_media(media="print")
    assert tab.locator("#loss g[data-arm='0']:visible").count() == 0
    assert tab.locator("#loss g[data-arm='1']:visible").count() > 0
    tab.emulate_media(media="screen")
    tab.click("#loss [data-shows-arm='0']")
    assert [tab.evaluate(COLORED, [loss, arm]) for arm in (0, 1)] == inks
    assert tab.locator("tr[data-arm='0']:visible").count() > 0
    tab.focus("#tools [data-shows-arm='0']")
    tab.keyboard.press("Shift+Enter")
    assert [one.get_attribute("aria-pressed") for one in tab.query_selector_all("#tools .chip")] == ["true", "false"]


def test_a_layer_is_hidden_in_every_table(visit):
    tab = visit("all").tab
    rows = tab.locator("tr[data-layer='0.weight']:visible").count()
    others = tab.locator("tr[data-layer='2.weight']:visible").count()
    assert rows > 1
    tab.click("summary:has-text('Layers')")
    tab.uncheck("label:has-text('0.weight') input")
    assert tab.locator("tr[data-layer='0.weight']:visible").count() == 0
    assert tab.locator("tr[data-layer='2.weight']:visible").count() == others
    tab.click(".menu >> text=None")
    assert tab.locator("tr[data-layer]:visible").count() == 0
    tab.click(".menu >> text=All")
    assert tab.locator("tr[data-layer='0.weight']:visible").count() == rows


def test_the_cursor_reads_the_values_of_the_figure(visit, runs):
    opened = visit("overview")
    opened.through()
    tab = opened.tab
    figure = next(one for one in overview(runs).figures if one.key == "lambda_max")
    tab.focus("#lambda_max .plot")
    tab.keyboard.press("ArrowLeft")
    reading = tab.inner_text("#lambda_max .reading")
    assert reading.startswith("optimizer step 40")
    for curve in figure.curves:
        assert f"{curve.name}\n50.50 ± 0.25 [50.00, 51.00]" in reading
        assert curve.median[-1] == 50.5
    assert tab.inner_text("#lambda_max [role=status]").startswith("optimizer step 40")
    tab.keyboard.press("ArrowLeft")
    assert tab.inner_text("#lambda_max .reading").startswith("optimizer step 32")
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#lambda_max .reading")
    tab.hover("#adaptive_trace .plot")
    tab.locator("#lambda_max .plot").scroll_into_view_if_needed()
    box = tab.query_selector("#lambda_max .u-over").bounding_box()
    tab.mouse.move(box["x"] + box["width"] - 3, box["y"] + 40)
    assert tab.inner_text("#lambda_max .reading").startswith("optimizer step 40")


def test_a_drag_zooms_and_a_button_a_key_and_a_double_click_reset(visit):
    opened = visit("overview")
    opened.through()
    tab = opened.tab
    tab.query_selector("#loss").scroll_into_view_if_needed()
    box = tab.query_selector("#loss .u-over").bounding_box()

    def drag():
        tab.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 50)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 60, steps=4)
        tab.mouse.up()
        assert tab.is_visible("#loss .zoomed-out")

    assert not tab.is_visible("#loss .zoomed-out")
    drag()
    tab.click("#loss .zoomed-out")
    assert not tab.is_visible("#loss .zoomed-out")
    drag()
    tab.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 50)
    assert not tab.is_visible("#loss .zoomed-out")
    tab.focus("#loss .plot")
    tab.keyboard.press("+")
    assert tab.is_visible("#loss .zoomed-out")
    tab.keyboard.press("0")
    assert not tab.is_visible("#loss .zoomed-out")


def test_the_theme_is_that_of_the_system_until_one_is_chosen(visit):
    tab = visit("overview", color_scheme="dark").tab
    background = "() => getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(background)
    assert tab.inner_text(".theme") == "Theme: auto"
    tab.click(".theme")
    assert tab.inner_text(".theme") == "Theme: light"
    light = tab.evaluate(background)
    assert (dark, light) == ("rgb(20, 23, 27)", "rgb(255, 255, 255)")
    tab.reload()
    assert tab.evaluate(background) == light
    tab.click(".theme")
    assert tab.evaluate(background) == dark


def test_a_term_is_explained_on_hover_and_on_focus_until_escape(visit):
    tab = visit("overview").tab
    term = tab.query_selector("abbr.term")
    term.hover()
    assert tab.is_visible("#tip")
    meanings = tab.eval_on_selector_all(".terms dd", "(all) => all.map((one) => one.textContent)")
    assert tab.inner_text("#tip") in meanings
    tab.keyboard.press("Escape")
    assert not tab.is_visible("#tip")
    term.focus()
    assert tab.is_visible("#tip")
    assert term.get_attribute("aria-describedby") == "tip"
    tab.mouse.move(0, 0)
    head = tab.query_selector("th button[data-tip]") or tab.query_selector("abbr.term >> nth=1")
    head.focus()
    assert tab.inner_text("#tip") == head.get_attribute("data-tip")


def test_an_arm_has_the_same_color_on_every_page(visit):
    found = {}
    for page in ("overview", "sharpness", "flatness", "all"):
        tab = visit(page).tab
        swatches = "(chips) => chips.map((one) => [one.textContent, getComputedStyle(one.firstChild).backgroundColor])"
        found[page] = tab.eval_on_selector_all("#tools .chip", swatches)
    assert len(found["overview"]) == 2
    assert all(colors == found["overview"] for colors in found.values())


def test_paper_gets_pictures_without_tools_on_white(visit):
    opened = visit("all", color_scheme="dark")
    opened.through()
    tab = opened.tab
    tab.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    assert tab.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert all(one.is_visible() for one in tab.query_selector_all("figure > svg"))
    assert not [one for one in tab.query_selector_all("canvas, .tools, .theme, .contents") if one.is_visible()]
    assert tab.is_visible("table.provenance")
    assert len(tab.pdf()) > 20_000


def test_a_fragment_in_a_notebook_changes_nothing_around_it(visit, runs, tmp_path):
    fragment = overview(runs)._repr_html_()
    around = "<table id=mine><tr><td>1</td></tr></table><p id=words>a</p><figure id=own>f</figure><svg id=s></svg>"
    styles = """() => ["#mine", "#mine td", "#words", "#own", "#s"].map((one) => {
        const style = getComputedStyle(document.querySelector(one));
        return [style.color, style.padding, style.margin, style.borderBottom, style.maxWidth, style.fontSize].join();
    })"""
    seen = []
    for name, inside in (("without", ""), ("with", fragment * 2)):
        path = tmp_path / f"{name}.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><title>n</title>{around}{inside}", encoding="utf-8")
        opened = visit(path)
        seen.append(opened.tab.evaluate(styles))
        assert opened.said == []
    assert seen[0] == seen[1]
    opened.tab.click("summary:has-text('Figures') >> nth=0")
    assert opened.tab.locator(".lossscope-report svg:visible").count() > 2
    opened.tab.screenshot(path=tmp_path / "notebook.png")
