"""The HTML page: policy, hostile names, colors of arms, terms, embedded data, and the fragment for notebooks."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made_verdicts import EVERY

from html_page import HOSTILE, HtmlPage, assert_inert, hostile_report
from lossscope.landscape.measures.catalogue import known_measures
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.comparison.report import compare_report
from lossscope.reports.content import Column, Document, Report, Section, Statement, Table
from lossscope.reports.figure_content import Axis, Curve, Curves, Forest, HeatMap
from lossscope.reports.render.page_assets import UPLOT, asset, page_assets
from lossscope.reports.render.plot_data import embedded, plot_data
from lossscope.reports.render.style import PALETTE, ROLES
from lossscope.reports.render.table_marks import cell_html, head_text
from lossscope.reports.render.terms import explanation, terms_of

ROOT = Path(__file__).parents[3]
# as published on npm, version 1.6.32
PUBLISHED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
EMPTY = Table("provenance", "Provenance", (Column("what", "what", words=True),), (("torch",),))


def page_of(**parts: object) -> Report:
    """Return a small report with some parts."""
    made = Report("overview", "Overview", "2 runs", (), (), (), (), (), EMPTY)
    return replace(made, **parts)  # type: ignore[arg-type]


def curve(name: str = "arm", hue: int = 0, **more: object) -> Curve:
    made = Curve(name, hue, (1.0, 2.0), (3.0, 4.0), (2.0, 3.5), (4.0, 4.5), (0.1, None), 2)
    return replace(made, **more)  # type: ignore[arg-type]


def curves(*lines: Curve, **more: object) -> Curves:
    return Curves("loss", "Loss", "Caption.", Axis("step"), Axis("loss", "nats"), lines, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("report", [sharpness, spectral_entropy, flatness, dynamics, overview])
def test_a_page_runs_its_own_scripts_and_asks_for_nothing(report, write_run):
    tensors = [{"name": HOSTILE["quotes"], "shape": [8, 8], "track": "matrix"}]
    model = {"parameters": 64, "tensors": tensors}
    arm = "".join(HOSTILE[name] for name in ("script", "quotes", "terminal", "lines"))
    runs = [write_run("<img src=x onerror=alert(2)>", arm, model=model, seeds={"init": HOSTILE["script"]})]
    found = report(runs)
    pictures = sum(isinstance(one, HeatMap) for one in found.figures)  # which no script draws again
    page = assert_inert(render(found, "html"))
    assert page.policy["default-src"] == ["'none'"]
    assert "'unsafe-inline'" not in page.text.split("<style>")[0]
    assert page.tags.count("svg") - pictures == len(page.data["plots"]) > 0 or report is dynamics
    assert "</script><script>alert(1)" in page.words


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_name_is_text_wherever_it_stands(kind):
    name = HOSTILE[kind]
    report = hostile_report(name)
    table = report.tables[0]
    section = Section("C1", name, name, None, name, name, name, (table,), (name,), (name,), report.figures)
    document = Document("check", name, name, (section,), EMPTY, (table,), name, (name,), (name,), name)
    for one in (report, document):
        page = assert_inert(render(one, "html"))
        (line,) = page.data["plots"]["loss" if one is report else "s0-loss"]["lines"]
        shown = re.sub(r"\s+", " ", line["name"])
        assert shown == re.sub(
            r"\s+", " ", "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
        )
        assert shown[:100] in page.words
    fragment = HtmlPage(report._repr_html_())
    assert not {"script", "img", "iframe"} & set(fragment.tags)
    assert not [name for name, _ in fragment.attributes if name.startswith("on")]
    assert "<b>x</b>" not in fragment.text


def test_a_long_cell_is_cut_and_whole_in_its_title():
    table = Table("t", "T", (Column("arm", "arm", words=True),), ((HOSTILE["long"],),))
    page = HtmlPage(render(page_of(tables=(table,)), "html"))
    (cell,) = (attributes for tag, attributes in page.elements if tag == "td" and "title" in attributes)
    assert cell["title"] == HOSTILE["long"]
    assert len(cell_html(HOSTILE["long"]).replace("<wbr>", "")) == len(head_text(Column("x", HOSTILE["long"]))) == 160


def test_data_inside_a_script_element_cannot_end_it():
    data = {"name": "</script><!-- & \u2028\u2029 \u202e λ", "x": [1.5, None]}
    text = embedded(data)
    assert json.loads(text) == data
    assert not set("<>&\u2028\u2029\u202eλ") & set(text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded({"x": float("nan")})


def test_the_plotting_library_is_as_published():
    folder = ROOT / "reports" / "render" / "assets" / UPLOT
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found == PUBLISHED
    assert f"v{UPLOT.removeprefix('uplot-')}" in asset(f"{UPLOT}/uPlot.iife.min.js")


def test_no_script_or_style_could_end_its_own_element():
    for plots in (True, False):
        assets = page_assets(plots=plots)
        assert not [one for one in assets.scripts if re.search(r"</script|<!--", one, re.I)]
        assert not [one for one in assets.styles if "</style" in one.lower()]
        assert "\r" not in "".join((*assets.scripts, *assets.styles))


def test_a_page_without_plots_has_no_plotting_library():
    assert "uPlot" not in render(page_of(), "html")
    assert "uPlot" in render(page_of(figures=(curves(curve()),)), "html")


def test_the_terms_of_the_pages_are_those_of_the_glossary():
    written = runpy.run_path(str(ROOT / "docs" / "update_glossary.py"))["text"]()
    assert asset("glossary.json") == written, "run python docs/update_glossary.py"
    terms = json.loads(written)
    assert len(terms) > 70
    names = [word for one in terms for word in one["words"]]
    assert len(names) == len(set(names))
    assert {"arm", "λ_max", "critical sharpness", "σ*", "A(k)", "perturbation"} <= set(names)


def test_terms_that_stand_on_a_page_are_explained_on_it():
    statement = Statement("The shear of each arm, and log_fisher_rao.", "fine")
    words = [one.words[0] for one in terms_of(page_of(summary=(statement,)))]
    assert words == ["arm", "log_fisher_rao", "shear"]
    page = HtmlPage(render(page_of(summary=(statement,)), "html"))
    assert "the part of the adversarial gradient orthogonal to the base gradient" in page.words
    assert "surrogate gap" not in page.words


def test_heads_of_columns_are_explained_by_the_catalogue_and_the_glossary():
    assert explanation(Column("x", "x", "", "its own")) == "its own"
    measure = known_measures()["negative_mass"]
    assert explanation(Column("negative_mass", "negative mass")).startswith(measure.meaning)
    assert explanation(Column("kind", "track")).startswith("how an optimizer treats a parameter")
    assert explanation(Column("x", "<script>")) == ""


def test_an_arm_has_one_color_on_every_page(write_run):
    names = ("ars2-sync", "adamw", "ars2-base")
    runs = [write_run(f"{arm}-s{seed}", arm, seed) for arm in names for seed in (0, 1)]
    expected = {"adamw": 0, "ars2-base": 1, "ars2-sync": 2}
    for report in (overview, sharpness, flatness):
        for some in (runs, runs[::-1]):
            made = report(some)
            assert {arm.name: arm.hue for arm in made.arms} == expected
            lines = [
                line for figure in made.figures for line in getattr(figure, "curves", getattr(figure, "points", ()))
            ]
            assert lines
            assert all(line.hue == expected[line.name] for line in lines)


def test_an_arm_has_its_color_in_a_comparison_too(write_run):
    runs = [write_run(f"{arm}-s0", arm) for arm in ("sync", "adamw", "base")]
    series = [{"loss": [1.0, 0.1, 0.01], "value": [3.0, 2.0, 1.0]}]
    one = replace(EVERY["supported"], figures={"series": {"digits-mlp": {"sync": series, "base": series}}})
    document = compare_report(one, runs, version="0.2.0")
    (figure,) = (figure for figure in document.sections[0].figures if isinstance(figure, Curves))
    assert [(line.name, line.hue) for line in figure.curves] == [("sync", 2), ("base", 1)]


def test_a_picture_has_its_arms_as_groups_and_no_style_of_its_own():
    page = HtmlPage(render(page_of(figures=(curves(curve("a", 3), curve("b", 1)),)), "html"))
    arms = {attributes["data-arm"] for tag, attributes in page.elements if tag == "g" and "data-arm" in attributes}
    assert arms == {"1", "3"}
    colors = [value for name, value in page.attributes if name == "stroke"]
    assert f"var(--hue-3, {PALETTE[3]})" in colors
    assert "var(--ink, #22262b)" in [value for name, value in page.attributes if name == "fill"]


def test_every_color_of_a_figure_has_a_light_and_a_dark_variable():
    style = asset("style.css")
    pairs = dict(re.findall(r"(--[\w-]+): light-dark\((#\w{6}), #\w{6}\);", style))
    assert {color: variable for color, variable in ROLES.items() if variable.startswith("--hue")} == {
        pairs[variable]: variable for variable in pairs if variable.startswith("--hue")
    }
    assert set(ROLES.values()) <= set(pairs)
    assert [f".hue-{place} {{" in style for place in range(len(PALETTE))] == [True] * len(PALETTE)


def test_rows_and_columns_know_their_arm_and_their_layer(write_run):
    runs = [write_run(f"{arm}-s0", arm) for arm in ("b", "a")]
    page = HtmlPage(render(overview(runs), "html"))
    heads = {attributes["data-arm"] for tag, attributes in page.elements if tag == "th" and "data-arm" in attributes}
    rows = {attributes["data-arm"] for tag, attributes in page.elements if tag == "tr" and "data-arm" in attributes}
    assert heads == rows == {"0", "1"}
    page = HtmlPage(render(spectral_entropy(runs), "html"))
    layers = {
        attributes["data-layer"] for tag, attributes in page.elements if tag == "tr" and "data-layer" in attributes
    }
    assert {"0.weight", "2.weight"} <= layers


def test_plots_have_the_numbers_of_the_figure():
    data = plot_data(curves(curve(dashed=True, error=(None, 0.123456789)), absent=("none",)))
    assert data is not None
    assert data["lines"] == [
        {
            **{"arm": 0, "name": "arm", "x": [1, 2], "y": [3, 4], "low": [2, 3.5], "high": [4, 4.5]},
            **{"error": [None, 0.123457], "dashed": True},
        }
    ]
    assert data["y"] == {"label": "loss (nats)", "scale": "linear"}
    assert data["absent"] == ["none"]
    assert plot_data(Forest("f", "F", "", Axis("x"), ())) is None


def test_what_has_no_place_on_an_axis_is_missing_in_a_plot():
    log = replace(curves(curve(median=(0.0, 1e200), low=(-1.0, 1.0))), y=Axis("y", scale="log"))
    (line,) = plot_data(log)["lines"]  # type: ignore[index]
    assert (line["y"], line["low"]) == ([None, None], [None, 1])


def test_commands_of_the_first_screen_are_code_and_names_in_them_are_text():
    page = assert_inert(render(page_of(summary=(Statement("Next: `lossscope compare <a> b`.", "fine"),)), "html"))
    assert "<code>lossscope compare &lt;a&gt; b</code>." in page.text


def test_a_figure_without_data_is_one_line():
    page = HtmlPage(render(page_of(figures=(curves(absent=("a",)), replace(curves(curve()), key="other"))), "html"))
    assert "Loss: not measured in these runs." in page.words
    assert page.tags.count("svg") == 1
    assert {"loss", "other"} <= set(page.identifiers)


def test_a_note_that_was_shown_before_is_a_link_to_it():
    table = Table("first", "First", (Column("x", "x"),), ((1,),), "A note.")
    page = HtmlPage(render(page_of(tables=(table, replace(table, key="second", title="Second"))), "html"))
    assert page.words.count("A note.") == 1
    assert "Note: as under First." in page.words


def test_only_the_opening_of_a_long_caption_stands_open():
    long = f"First sentence. {'Second sentence. ' * 20}"
    page = HtmlPage(render(page_of(figures=(replace(curves(curve()), caption=long),)), "html"))
    assert "First sentence. Details Second sentence." in page.words


def test_a_notebook_shows_a_report_without_a_script_and_with_styles_of_its_own(write_run):
    report = overview([write_run("a")])
    html = report._repr_html_()
    page = HtmlPage(html)
    assert page.elements[0] == ("div", {"class": "lossscope-report"})
    assert not page.scripts
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    (style,) = page.styles
    assert re.fullmatch(r"\.lossscope-report \{(?:[^{}]|\{[^{}]*\})*\}\s*", style)
    assert report.summary[0].words in page.words
    assert page.tags.count("svg") > 2
    assert len(page.identifiers) == len(set(page.identifiers))


def test_two_reports_in_one_notebook_share_no_identifier():
    first, second = (page_of(subtitle=words, figures=(curves(curve()),)) for words in ("one", "two"))
    found = [set(HtmlPage(one._repr_html_()).identifiers) for one in (first, second)]
    assert found[0]
    assert not found[0] & found[1]
    assert first._repr_html_() == first._repr_html_()
