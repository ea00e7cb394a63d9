"""A report of many runs cut to what is read in a terminal: first screen, what is wrong, and the arms in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from lossscope.reports.content import Cell, Column, Quantity, Report, Table
from lossscope.reports.shared.trajectory import without_ranges

__all__ = ["MANY", "condensed"]

MANY: Final = 24  # runs; a text report of more is condensed
_SUMMARY: Final = "summary"  # begins the keys of the overview's tables, whose columns are arms
_SHOWN: Final = ("train loss, last step", "test accuracy", "λ_max", "adaptive trace", "directional edge ratio", "trace")
_MEASURES: Final = 4  # columns beside the arm
_ROWS: Final = 10
_ARMS: Final = 24  # rows of a table of arms
_FINDINGS: Final = 3


def condensed(report: Report, runs: int) -> Report:
    """Return a report of many runs without its details, with a note that says what is left out and where it is.

    Args:
        report: The report.
        runs: The number of its runs; a report of at most `MANY` is returned as it is.
    """
    if runs <= MANY:
        return report
    wrong = [finding for finding in report.findings if finding.outcome is False]
    table, left_out = _main_table(report.tables)
    rest = [
        _counted(len(report.findings) - len(wrong[:_FINDINGS]), "finding"),
        _counted(max(len(report.tables) - len(table), 0), "table"),
        _counted(len(report.figures), "figure"),
        _counted(left_out, "row"),
    ]
    note = (
        f"This text of {runs} runs is cut: {', '.join(filter(None, rest))}, the notes and the provenance are left out. "
        "--format markdown, html or json has them, and so has the text of fewer runs."
    )
    return replace(
        report,
        notes=(note,),
        findings=tuple(wrong[:_FINDINGS]),
        tables=table,
        figures=(),
        missing=(),
        provenance=replace(report.provenance, rows=()),
    )


def _main_table(tables: Sequence[Table]) -> tuple[tuple[Table, ...], int]:
    """Return the table of the arms, or the first table, and the number of its rows that are left out."""
    arms = [table for table in tables if table.key.startswith(_SUMMARY)]
    with_rows = [table for table in tables if table.rows and not table.opens]
    if not arms and not with_rows:
        return (), 0
    table = _by_arm(arms) if arms else with_rows[0]
    most = _ROWS
    if not arms and table.key == "arms":
        table, most = _medians(table), _ARMS
    return (replace(table, rows=table.rows[:most]),), max(len(table.rows) - most, 0)


def _medians(table: Table) -> Table:
    """Return a table of arms with a line for each: medians, whose ranges the other formats have."""
    title, _, _ = table.title.partition(":")
    note = "The ranges over seeds limit the digits; --format markdown, html or json has them."
    return replace(without_ranges(table), title=f"{title}: medians over seeds", note=note)


def _by_arm(tables: Sequence[Table]) -> Table:
    """Return the overview with a row for each arm and a column for each of a few measures."""
    units = {str(row[0]): str(row[1]) for table in tables for row in table.rows}
    there = [name for name in _SHOWN if any(_has(row) for table in tables for row in table.rows if row[0] == name)]
    shown = there[:_MEASURES]
    columns = (
        Column("arm", "arm", words=True),
        Column("seeds", "seeds"),
        *(Column(name, name, units[name]) for name in shown),
    )
    rows = [
        (column.title, *(_cell(table, name, place) for name in ("seeds", *shown)))
        for table in tables
        for place, column in enumerate(table.columns)
        if place > 1
    ]
    return Table("arms", tables[0].title, columns, tuple(rows))


def _cell(table: Table, name: str, place: int) -> Cell:
    """Return the cell of a measure and an arm."""
    return next((row[place] for row in table.rows if row[0] == name), None)


def _has(row: Sequence[Cell]) -> bool:
    """Return True if an arm has a value."""
    return any(cell is not None and not (isinstance(cell, Quantity) and cell.value is None) for cell in row[2:])


def _counted(count: int, what: str) -> str:
    """Return a count in words; "" for none."""
    return f"{count} {what}{'' if count == 1 else 's'}" if count else ""
