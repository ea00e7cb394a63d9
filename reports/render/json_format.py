"""JSON renderer: one object with stable keys."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from lossscope.reports.content import Cell, Document, Finding, Quantity, Report, Section, Table
from lossscope.reports.figure_content import Cloud, Contours, Curves, FigureData, Forest, HeatMap, Spectra

__all__ = ["document_json", "report_json", "table_object"]


def report_json(report: Report) -> str:
    """Return the report as one JSON object with its schema version.

    Missing values, nan and infinity are null. Tables have their columns with units, and one object per row with the
    column keys.
    """
    content = {
        "schema": report.schema,
        "kind": report.kind,
        "title": report.title,
        "subtitle": report.subtitle,
        "alert": report.alert,
        "summary": [asdict(statement) for statement in report.summary],
        "notes": list(report.notes),
        "findings": [_finding(finding) for finding in report.findings],
        "tables": {table.key: table_object(table) for table in report.tables},
        "figures": {figure.key: _figure(figure) for figure in report.figures},
        "missing": [asdict(missing) for missing in report.missing],
        "provenance": table_object(report.provenance),
    }
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False) + "\n"


def document_json(document: Document) -> str:
    """Return a document as one JSON object with its schema version; missing values, nan and infinity are null."""
    content = {
        "schema": document.schema,
        "kind": document.kind,
        "title": document.title,
        "subtitle": document.subtitle,
        "alert": document.alert,
        "sections": [_section(section) for section in document.sections],
        "tables": {table.key: table_object(table) for table in document.tables},
        "closing": document.closing,
        "notes": list(document.notes),
        "reproduce": list(document.reproduce),
        "provenance": table_object(document.provenance),
    }
    return json.dumps(_finite(content), ensure_ascii=False, allow_nan=False) + "\n"


def table_object(table: Table) -> dict[str, object]:
    """Return a table as an object: title, note, columns with units, rows by column key."""
    keys = [column.key for column in table.columns]
    return {
        "title": table.title,
        "note": table.note,
        "columns": [
            {"key": column.key, "title": column.title, "unit": column.unit, "meaning": column.meaning}
            for column in table.columns
        ],
        "rows": [dict(zip(keys, (_cell(cell) for cell in row), strict=True)) for row in table.rows],
    }


def _finding(finding: Finding) -> dict[str, object]:
    """Return a finding, its outcome as true, false or null and as a word, and the sentence of what happened."""
    return {**asdict(finding), "outcome_in_words": finding.mark, "statement": finding.statement}


def _section(section: Section) -> dict[str, object]:
    """Return a section with its tables, figures and data."""
    return {
        "key": section.key,
        "question": section.question,
        "status": section.status,
        "sentence": section.sentence,
        "setting": section.setting,
        "claim": section.claim,
        "tables": {table.key: table_object(table) for table in section.tables},
        "facts": list(section.facts),
        "change": list(section.change),
        "figures": {figure.key: _figure(figure) for figure in section.figures},
        "data": dict(section.data),
    }


def _figure(figure: FigureData) -> dict[str, object]:
    """Return a figure with its data."""
    kinds: dict[type, str] = {
        Curves: "curves",
        Cloud: "points",
        Spectra: "spectra",
        Forest: "forest",
        HeatMap: "heat_map",
        Contours: "contours",
    }
    return {"kind": kinds[type(figure)], **asdict(figure)}


def _cell(cell: Cell) -> object:
    """Return a cell; a quantity becomes an object."""
    return asdict(cell) if isinstance(cell, Quantity) else cell


def _finite(value: object) -> object:
    """Return the value with every non-finite number replaced by None, at any depth."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
