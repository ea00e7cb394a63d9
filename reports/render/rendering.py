"""A report in the format asked for."""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

from lossscope.reports.content import Report

__all__ = ["Format", "render"]

Format: TypeAlias = Literal["text", "json", "html"]


def render(report: Report, format: Format) -> str:
    """The report as one string, ending in a newline.

    Args:
        report: what to say.
        format: `text` for a terminal, `json` for a program, `html` for a page with figures. Only the last loads
            matplotlib.

    Returns:
        The rendering. Equal reports give equal strings.
    """
    match format:
        case "text":
            from lossscope.reports.render.text import report_text

            return report_text(report)
        case "json":
            from lossscope.reports.render.json_format import report_json

            return report_json(report)
        case "html":
            from lossscope.reports.render.html import report_html

            return report_html(report)
        case _:
            assert_never(format)
