"""Markdown renderer (CommonMark with tables): text of data is escaped and stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Cell, Document, Finding, Report, Section, Table
from lossscope.reports.figure_content import FigureData, limits_of
from lossscope.reports.shared.number_format import cell_text, header

__all__ = ["document_markdown", "report_markdown"]

_SPECIAL: Final = re.compile(r"[\\`*_{}\[\]<>|~&#]")  # what would be markup, an entity or the end of a cell


def report_markdown(report: Report) -> str:
    """Return the report in Markdown, figures in numbers.

    Args:
        report: The report.

    Returns:
        The text, ending in a newline.
    """
    parts = _opening(report)
    parts.append(_list(f"**{one.severity}** {_escaped(one.words)}" for one in report.summary))
    parts += [part for table in report.tables if table.opens for part in _table(table, "##")]
    parts += ["## Notes", _list(map(_escaped, report.notes))] * bool(report.notes)
    parts += ["## Findings", _list(map(_finding, report.findings))] * bool(report.findings)
    parts += [part for table in report.tables if not table.opens for part in _table(table, "##")]
    parts += ["## Figures in numbers", _list(map(_figure, report.figures))] * bool(report.figures)
    if report.missing:
        parts += ["## Not available", _list(f"{_escaped(one.what)}: {_escaped(one.how)}" for one in report.missing)]
    return _joined([*parts, *_table(report.provenance, "##")])


def document_markdown(document: Document) -> str:
    """Return a document in Markdown: each section with its tables, its sentence and its facts.

    Args:
        document: The document.

    Returns:
        The text, ending in a newline.
    """
    parts = _opening(document)
    parts += [part for section in document.sections for part in _section(section)]
    parts += [part for table in document.tables for part in _table(table, "##")]
    parts += [_list(map(_escaped, document.notes)), _escaped(document.closing)]
    if document.reproduce:
        parts += ["## Make it again", "\n".join(f"    {printable(one)}" for one in document.reproduce)]
    return _joined([*parts, *_table(document.provenance, "##")])


def _opening(page: Report | Document) -> list[str]:
    """Return title, alert and subtitle."""
    alert = f"**{_escaped(page.alert)}**" if page.alert else ""
    return [f"# {_escaped(page.title)}", alert, _escaped(page.subtitle)]


def _section(section: Section) -> list[str]:
    """Return a section: question, answer, tables, facts."""
    status = f"**{_escaped(section.status)}** " if section.status else ""
    setting = [_escaped(section.setting)] if section.setting else []
    tables = [part for table in section.tables for part in _table(table, "###")]
    facts = _list(map(_escaped, (*section.facts, *section.change)))
    return [f"## {_escaped(section.question)}", f"{status}{_escaped(section.sentence)}", *setting, *tables, facts]


def _finding(finding: Finding) -> str:
    """Return a finding with its outcome, numbers and source."""
    words = f"{_escaped(finding.statement)} {_escaped(finding.numbers)} ({_escaped(finding.source)})"
    return f"**{finding.mark}** {words}"


def _figure(figure: FigureData) -> str:
    """Return a figure in numbers, a line for each arm."""
    absent = [f"{name}: not measured" for name in figure.absent]
    lines = (*limits_of(figure), *figure.summary, *absent)
    return "\n".join([_escaped(figure.title), *(f"  - {_escaped(line)}" for line in lines)])


def _table(table: Table, rule: str) -> list[str]:
    """Return a table with its title and note."""
    if not table.rows:
        return [f"{rule} {_escaped(table.title)}", "none"]
    sides = [":--" if column.words else "--:" for column in table.columns]
    head = [_escaped(header(column)) for column in table.columns]
    rows = [head, sides, *(_cells(row) for row in table.rows)]
    grid = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return [f"{rule} {_escaped(table.title)}", grid, *([_escaped(table.note)] if table.note else [])]


def _cells(row: Sequence[Cell]) -> list[str]:
    return [_escaped(cell_text(cell)) for cell in row]


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _escaped(words: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", printable(words.replace("\n", " ")))
