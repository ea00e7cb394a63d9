"""Reports as text, JSON and HTML."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from html_page import HtmlPage
from lossscope.landscape.run import Run
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.content import REPORT_SCHEMA

REPORTS = (sharpness, spectral_entropy, flatness, dynamics, overview)
FORMATS = ("text", "json", "markdown", "html")
HOSTILE_ARM = "<script>alert(1)</script>"
HOSTILE_RUN = "<img src=x onerror=alert(2)>"
HOSTILE_TENSOR = "a&<b>\"'\x1b[31m"


@pytest.fixture
def hostile(write_run):
    tensors = [{"name": HOSTILE_TENSOR, "shape": [8, 8], "track": "matrix"}]
    model = {"parameters": 64, "tensors": tensors}
    return [write_run(HOSTILE_RUN, HOSTILE_ARM, model=model, seeds={"init": HOSTILE_ARM})]


@pytest.mark.parametrize("report", REPORTS)
def test_every_report_renders_in_every_format_for_every_kind_of_run(report, write_run):
    runs = [
        write_run("good"),
        write_run("bare", curvature=False),
        write_run("empty", steps=0, curvature=False),
        write_run("failed", steps=7, status="failed"),
        write_run("crashed", steps=7, status=None),
    ]
    for some in (runs, runs[2:3]):
        made = report(some)
        for format in FORMATS:
            assert render(made, format).endswith("\n"), format


@pytest.fixture(scope="module")
def demo_page(demo_folder):
    """Return a function that makes the page of a report of the demo's runs, once."""
    runs = [Run.open(path) for path in sorted(demo_folder.iterdir())]
    return cache(lambda report: render(report(runs), "html"))


@pytest.mark.parametrize("report", REPORTS)
def test_equal_data_gives_equal_bytes(report, demo_runs):
    first, again = report(demo_runs), report(demo_runs)
    for format in ("text", "json"):
        assert render(first, format) == render(again, format), format


@pytest.mark.parametrize(
    "report", [pytest.param(one, marks=pytest.mark.slow) for one in REPORTS if one is not flatness] + [flatness]
)
def test_equal_data_gives_an_equal_page(report, demo_runs, demo_page):
    assert render(report(demo_runs), "html") == demo_page(report)


def test_the_text_has_the_numbers_with_their_errors_and_fits_its_width(demo_runs):
    text = render(sharpness(demo_runs), "text")
    assert "50.00 ± 0.25" in text
    assert "200.0 ± 1.5 [197.0, 203.0]" in text
    assert re.search(r"50\.50 .*\n.*\[50\.00, 51\.00\]", text)
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "\x1b" not in text


@pytest.fixture(scope="module")
def long_arms(shelf, tmp_path_factory):
    folder, arms = tmp_path_factory.mktemp("long"), [f"an-arm-with-a-rather-long-name-{number}" for number in range(4)]
    return [shelf.written(folder / f"{arm}-s{seed}", arm, seed) for arm in arms for seed in (0, 1)]


@pytest.mark.parametrize("report", REPORTS)
def test_no_number_is_cut_off_by_a_narrow_column(report, long_arms):
    made = report(long_arms)
    text = re.sub(r"\s+", "", render(made, "text"))
    from lossscope.reports.content import Quantity
    from lossscope.reports.shared.number_format import quantity_text

    cells = [cell for table in made.tables for row in table.rows for cell in row if isinstance(cell, Quantity)]
    for cell in cells:
        for part in quantity_text(cell).replace(" [", "\n[").split("\n"):
            assert part.replace(" ", "") in text


def test_markup_in_a_name_is_not_interpreted_in_text(write_run):
    text = render(sharpness([write_run("[bold]x[-bold] :smile:")]), "text")
    assert "[bold]x[-bold] :smile:" in text


def test_the_json_is_one_object_with_its_schema_units_and_null_for_a_gap(demo_runs):
    content = json.loads(render(overview(demo_runs), "json"))
    assert (content["schema"], content["kind"]) == (REPORT_SCHEMA, "overview")
    rows = {row["measure"]: row for row in content["tables"]["summary"]["rows"]}
    shown = {"value": 50.5, "error": None, "low": 50.0, "high": 51.0, "missing": 0}
    assert rows["λ_max"]["arm_1"] == {**shown, "known_error": 0.25}
    assert rows["shear angle"]["arm_1"]["value"] is None
    assert rows["λ_max"]["unit"] == "nats"
    assert content["figures"]["trace"]["y"]["unit"] == "nats"
    assert {finding["outcome"] for finding in content["findings"]} <= {True, False, None}


def test_the_page_has_every_number_of_the_tables_and_says_it_in_words_beside_each_figure(demo_page):
    page = demo_page(overview)
    words = HtmlPage(page).words
    assert "50.50 [50.00, 51.00]" in words
    assert "ars2-sync: 30.00 ° at step 40" in words
    labels = [value for name, value in HtmlPage(page).attributes if name == "aria-label" and value]
    assert any("Trace of the Hessian. ars2-base: 202.0 ± 3.0 [200.0, 204.0] nats at step 40" in one for one in labels)


def test_a_hostile_name_does_not_steer_a_terminal(hostile):
    assert "\x1b" not in render(spectral_entropy(hostile), "text")


def test_provenance_tells_versions_data_seeds_and_products(demo_runs):
    ((runs, words),) = sharpness(demo_runs).provenance.rows
    assert runs == "all"
    for fact in (
        "torch 2.13.0",
        "data hash 5f0c3a9b1e2d4c66",
        "products in float32",
        "seeds (init / split / order) 0 / 0 / 0, 1 / 0 / 1",
        "curvature evaluations 8",
        "Hessian products 423",  # 8 evaluations of 20 + 16 + 16, and 7 steps
    ):
        assert fact in words


def test_runs_that_agree_have_one_line_of_provenance_and_others_their_own(write_run):
    runs = [write_run("a"), write_run("b", seed=1), write_run("c", preset="full")]
    assert [row[0] for row in sharpness(runs).provenance.rows] == ["a, b", "c"]
