"""Tables as text: within the requested width, and no number broken."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given, strategies as st

from lossscope.landscape.run import Run
from lossscope.reports import dynamics, flatness, overview, render, sharpness, spectral_entropy
from lossscope.reports.content import Column, Quantity, Table
from lossscope.reports.render.text import NARROWEST, WIDEST, table_text
from lossscope.reports.shared.number_format import cell_text
from lossscope.reports.sharpness.spectrum_tables import spectrum_table

WIDE = Quantity(1.75034, error=0.00072, low=1.7489, high=1.7519)
HEADS = ("‖H‖_F ± SE [95 %]", "negative mass", "effective rank", "participation ratio", "λ_2 ± bound", "λ_3 ± bound")
WIDTHS = (NARROWEST, 100, WIDEST)


def wide(count: int) -> Table:
    columns = (Column("run", "run", words=True), *(Column(f"c{i}", HEADS[i % 6], "nats") for i in range(count)))
    return Table("t", "A table", columns, (("ars2-lazy-k5-rho0.05-s0", *[WIDE] * count),))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", [3, 5, 6, 7, 12])
def test_headers_break_between_words_and_values_before_their_interval_only(count, width):
    lines = table_text(wide(count), width).splitlines()
    assert max(map(len, lines)) <= width
    rules = [place for place, line in enumerate(lines) if "──" in line]
    begins = [3, *(place + 1 for place, line in enumerate(lines) if not line and place > 3)]
    words = {word for a, b in zip(begins, rules, strict=True) for line in lines[a - 1 : b] for word in line.split()}
    assert words - {"-------"} <= {"run", "(nats)", *(word for head in HEADS for word in head.split())}
    text = "\n".join(lines)
    assert text.count("1.75034 ± 0.00072") == text.count("[1.7489, 1.7519]") == count


def test_a_table_that_is_too_wide_repeats_its_row_labels_in_each_block():
    columns = (
        Column("run", "run", words=True),
        Column("arm", "arm", words=True),
        *(Column(f"c{i}", f"value-{i}") for i in range(8)),
    )
    rows = tuple((f"run-{i}", f"arm-{i}", *[WIDE] * 8) for i in range(2))
    text = table_text(Table("t", "T", columns, rows, note="The note."), NARROWEST)
    blocks = text.count("run-0")
    assert blocks > 1
    assert text.count("arm-1") == blocks
    assert re.findall(r"value-\d", text) == [f"value-{i}" for i in range(8)]
    assert text.count("The note.") == 1
    assert table_text(Table("t", "T", columns[:4], tuple(row[:4] for row in rows)), NARROWEST).count("run-0") == 1


@given(st.lists(st.text("abc ", max_size=60), min_size=1, max_size=30), st.sampled_from(WIDTHS))
def test_no_letter_of_any_table_is_lost_at_the_edge(titles, width):
    columns = tuple(Column(str(i), title, words=i % 2 == 0) for i, title in enumerate(titles))
    text = table_text(Table("t", "T", columns, (tuple(f"x{i}y" for i in range(len(titles))),)), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert set(re.findall(r"x\d+y", text)) == {f"x{i}y" for i in range(len(titles))}


@pytest.fixture(scope="module")
def made(long_named, demo_folder):
    """Return a function that makes a report of the demo's runs and of one with a long name, once."""
    runs = [long_named, *(Run.open(path) for path in sorted(demo_folder.iterdir()))]
    return cache(lambda report: report(runs))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("report", [sharpness, spectral_entropy, flatness, dynamics, overview])
def test_a_report_fits_its_width_and_breaks_no_number(report, width, made):
    text = render(made(report), "text", width=width)
    assert max(map(len, text.splitlines())) <= width
    for table in made(report).tables:
        shown = table_text(table, width)
        for cell in (cell for row in table.rows for cell in row if isinstance(cell, Quantity | float)):
            parts = re.split(r" (?=\[|\(\d+ missing)", cell_text(cell))
            assert all(part in shown for part in parts), (table.key, parts)


def test_the_default_width_is_the_largest(demo_runs):
    report = overview(demo_runs)
    assert render(report, "text") == render(report, "text", width=WIDEST) != render(report, "text", width=NARROWEST)


def test_the_whole_spectrum_is_two_tables(write_run):
    def rows(table, row):
        return {**row, "measure": "lambda_3"} if row.get("measure") == "adaptive_trace" else row

    (table,) = spectrum_table([write_run("a", rows=rows)])
    assert (table.key, [column.key for column in table.columns]) == ("eigenvalues", ["run", "step", "lambda_3"])
