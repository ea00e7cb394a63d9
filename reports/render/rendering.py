"""Render a report as text, JSON or HTML."""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

from lossscope.reports.content import Report

__all__ = ["Format", "render"]

Format: TypeAlias = Literal["text", "json", "html"]


def render(report: Report, format: Format, *, width: int = 120) -> str:
    """Return the report as one string, ending in a newline.

    Args:
        report: The report.
        format: `text` for a terminal, `json` for a program, `html` for a page with figures. Only `html` loads
            matplotlib.
        width: Length of the longest line of `text` in columns, at least 80; the other formats ignore it.

    Returns:
        The rendered report. Equal reports give equal strings.
    """
    match format:
        case "text":
            from lossscope.reports.render.text import report_text

            return report_text(report, width)
        case "json":
            from lossscope.reports.render.json_format import report_json

            return report_json(report)
        case "html":
            from lossscope.reports.render.html import report_html

            return report_html(report)
        case _:
            assert_never(format)
