"""Markdown: a parser of CommonMark reads the same words and tables, and nothing of data is markup."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from lossscope.landscape.run import Run
from lossscope.reports import overview, render, sharpness
from lossscope.reports.content import Report, Table

HOSTILE = ("<script>alert(1)</script>", "a|b `c` *d* _e_ [f](g) \\ ~~h~~ &amp; #1 {{x}}", "\x1b[31mred\n# head\n\n- x")


def tokens(text: str) -> list[Token]:
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [*found, *(child for one in found for child in one.children or ())]


def words(text: str) -> str:
    return " ".join(" ".join(one.content for one in tokens(text) if one.type == "text").split())


@pytest.mark.parametrize("name", HOSTILE)
def test_names_come_out_as_text(name: str) -> None:
    table = Table("t", name, (), ((name,),), name)
    report = Report("overview", "T", name, (), (table,), (), (name,), (), Table("p", "P", (), ()))
    made = render(report, "markdown")
    kinds = {one.type for one in tokens(made)}
    assert not kinds & {"html_block", "html_inline", "code_inline", "em_open", "link_open", "s_open", "fence", "image"}
    shown = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name.replace("\n", " ")
    )
    assert words(made).count(" ".join(shown.split())) >= 3
    assert "\x1b" not in made


def test_tables_have_a_cell_for_every_number(demo_runs: list[Run]) -> None:
    report = sharpness(demo_runs)
    made = render(report, "markdown")
    rows = sum(len(table.rows) + 1 for table in (*report.tables, report.provenance) if table.rows)
    cells = sum(len(table.columns) * len(table.rows) for table in (*report.tables, report.provenance))
    kinds = [one.type for one in tokens(made)]
    assert (kinds.count("tr_open"), kinds.count("td_open")) == (rows, cells)


def test_the_screen_comes_first_and_equal_reports_are_equal(demo_runs: list[Run]) -> None:
    report = overview(demo_runs)
    made = render(report, "markdown")
    assert made == render(overview(demo_runs), "markdown")
    lines = [line for line in made.splitlines() if line.startswith("- **")]
    assert [line.split("**")[1] for line in lines[: len(report.summary)]] == [one.severity for one in report.summary]
