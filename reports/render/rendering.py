"""Render a report or a document as text, JSON, Markdown or HTML."""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

from lossscope.reports.content import Document, Report

__all__ = ["Format", "render"]

Format: TypeAlias = Literal["text", "json", "markdown", "html"]


def render(report: Report | Document, format: Format, *, width: int = 120) -> str:
    """Return the report or document as one string, ending in a newline.

    Args:
        report: The report, or the document of a comparison, of claims or of contrasts.
        format: `text` for a terminal, `json` for a program, `markdown` for a note or an issue, `html` for a page with
            figures. Only `html` loads matplotlib.
        width: Length of the longest line of `text` in columns, at least 80; the other formats ignore it.

    Returns:
        The rendered report. Equal reports give equal strings.
    """
    match format:
        case "text":
            from lossscope.reports.render.document_text import document_text
            from lossscope.reports.render.text import report_text

            if isinstance(report, Document):
                return document_text(report, width)
            return report_text(report, width)
        case "json":
            from lossscope.reports.render.json_format import document_json, report_json

            return document_json(report) if isinstance(report, Document) else report_json(report)
        case "markdown":
            from lossscope.reports.render.markdown import document_markdown, report_markdown

            return document_markdown(report) if isinstance(report, Document) else report_markdown(report)
        case "html":
            from lossscope.reports.render.html import document_html, report_html

            return document_html(report) if isinstance(report, Document) else report_html(report)
        case _:
            assert_never(format)
