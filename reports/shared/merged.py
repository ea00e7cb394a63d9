"""Several reports of the same runs as one: every table and figure once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from lossscope.reports.content import Report, Table
from lossscope.reports.figure_content import FigureData

__all__ = ["merged"]


def merged(reports: Sequence[Report]) -> Report:
    """Return one report with what is in any of them; the first gives the first screen and the provenance.

    Args:
        reports: Reports of the same runs, at least one.

    Returns:
        The report. A table that is a part of another with its key is left out. A table whose key another report uses
        for another table gets the kind of its report before its key.
    """
    tables: dict[str, Table] = {}
    figures: dict[str, FigureData] = {}
    for report in reports:
        for table in report.tables:
            known = tables.get(table.key, table)
            if known != table and known.columns == table.columns and set(table.rows) <= set(known.rows):
                continue  # a part of it
            if known != table:
                table = replace(table, key=f"{report.kind}_{table.key}", title=f"{report.title}: {table.title}")
            tables[table.key] = table
        for figure in report.figures:
            figures.setdefault(figure.key, figure)
    return replace(
        reports[0],
        kind="all",
        title="All reports",
        findings=tuple(dict.fromkeys(chain.from_iterable(one.findings for one in reports))),
        tables=tuple(tables.values()),
        figures=tuple(figures.values()),
        notes=tuple(dict.fromkeys(chain.from_iterable(one.notes for one in reports))),
        missing=tuple(dict.fromkeys(chain.from_iterable(one.missing for one in reports))),
    )
