"""HTML of a report for a notebook: a fragment without a script, whose styles reach nothing outside it."""

from __future__ import annotations

import hashlib

from lossscope.reports.content import Document, Report
from lossscope.reports.figure_content import FigureData
from lossscope.reports.render.html import environment
from lossscope.reports.render.page_assets import asset
from lossscope.reports.render.plot_data import has_data
from lossscope.reports.render.svg import inline_svg

__all__ = ["document_fragment", "report_fragment"]


def report_fragment(report: Report) -> str:
    """Return a report as a fragment: its first screen, and figures, findings and tables to unfold.

    Nothing of it is an identifier of its own, so that a notebook may show several reports; colors follow the text of
    the notebook, light or dark.
    """
    return _fragment(report, report.figures)


def document_fragment(document: Document) -> str:
    """Return a document of verdicts as a fragment, like `report_fragment`."""
    return _fragment(document, tuple(figure for section in document.sections for figure in section.figures))


def _fragment(page: Report | Document, figures: tuple[FigureData, ...]) -> str:
    """Return a page as a fragment."""
    shown = [figure for figure in figures if has_data(figure)]
    # names of clip paths, of this page alone
    prefix = f"r{hashlib.sha256(repr(page).encode()).hexdigest()[:12]}-"
    pictures = [(figure, inline_svg(figure, prefix=f"{prefix}{place}-")) for place, figure in enumerate(shown)]
    return (
        environment()
        .get_template("notebook.html.j2")
        .render(
            page=page,
            pictures=pictures,
            style=asset("notebook.css"),
            report=isinstance(page, Report),
        )
    )
