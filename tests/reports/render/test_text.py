"""Tables as text: no wider than a page, and no word cut in two where there is room for it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from lossscope.reports.content import Column, Quantity, Table
from lossscope.reports.render.text import WIDTH, table_text
from lossscope.reports.sharpness.spectrum_tables import spectrum_table

WIDE = Quantity(1.75034, error=0.00072, low=1.7489, high=1.7519)
HEADS = ("‖H‖_F ± SE [95 %]", "negative mass", "effective rank", "participation ratio", "λ_2 ± bound", "λ_3 ± bound")


def wide(count: int) -> Table:
    columns = (Column("run", "run", words=True), *(Column(f"c{i}", HEADS[i % 6], "nats") for i in range(count)))
    return Table("t", "A table", columns, (("ars2-lazy-k5-rho0.05-s0", *[WIDE] * count),))


@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_headers_break_between_words_and_values_before_their_interval_only(count):
    lines = table_text(wide(count)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    words = [
        word for line in lines[3 : next(i for i, line in enumerate(lines) if "──" in line)] for word in line.split()
    ]
    assert set(words) <= {"run", "(nats)", *(word for head in HEADS for word in head.split())}
    text = "\n".join(lines)
    whole = count if count <= 5 else 0  # more than five do not fit beside each other
    assert text.count("1.75034 ± 0.00072") == text.count("[1.7489, 1.7519]") == whole
    assert text.count("1.75034") == text.count("1.7519]") == count


@given(st.lists(st.text("abc ", max_size=60), min_size=1, max_size=30))
def test_no_letter_of_any_table_is_lost_at_the_edge(titles):
    columns = tuple(Column(str(i), title, words=i % 2 == 0) for i, title in enumerate(titles))
    text = table_text(Table("t", "T", columns, (tuple(f"x{i}y" for i in range(len(titles))),)))
    assert all(len(line) <= WIDTH or len(titles) > 25 for line in text.splitlines())
    assert text.count("x") == text.count("y") == len(titles)


def test_the_whole_spectrum_is_two_tables(write_run):
    def rows(table, row):
        return {**row, "measure": "lambda_3"} if row.get("measure") == "adaptive_trace" else row

    (table,) = spectrum_table([write_run("a", rows=rows)])
    assert (table.key, [column.key for column in table.columns]) == ("eigenvalues", ["run", "step", "lambda_3"])
