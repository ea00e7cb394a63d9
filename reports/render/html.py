"""HTML renderer: one self-contained page that needs no network; a script of its own makes it interactive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Document, Report, Table
from lossscope.reports.figure_content import FigureData, Forest, limits_of
from lossscope.reports.render.page_assets import page_assets
from lossscope.reports.render.plot_data import embedded, has_data, plot_data
from lossscope.reports.render.style import PALETTE
from lossscope.reports.render.svg import inline_svg
from lossscope.reports.render.table_marks import TableMarks, cell_html, head_text
from lossscope.reports.render.terms import terms_of

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["document_html", "environment", "report_html"]

_LONG_CAPTION: Final = 200  # characters
_SENTENCE: Final = re.compile(r"(?<=[.!?]) (?=[^\W\d_a-zα-ω])")
_COMMAND: Final = re.compile(r"`([^`]+)`")
_LONGEST_TITLE: Final = 120  # characters of the page's name in a browser


def report_html(report: Report) -> str:
    """Return the report as a self-contained page. All text is escaped.

    Without a script it is complete: figures are inline SVG. Its script sorts tables, hides arms and layers, shows
    values and explains terms; its policy allows this script and no request.
    """
    return _page("page.html.j2", report, report.figures)


def document_html(document: Document) -> str:
    """Return the document as a self-contained page, like `report_html`.

    The keys of figures and tables of a section get its number, since sections have the same ones.
    """
    sections = tuple(
        replace(
            section,
            figures=tuple(replace(one, key=f"s{place}-{one.key}") for one in section.figures),
            tables=tuple(replace(one, key=f"s{place}-{one.key}") for one in section.tables),
        )
        for place, section in enumerate(document.sections)
    )
    figures = tuple(figure for section in sections for figure in section.figures)
    return _page("document.html.j2", replace(document, sections=sections), figures)


def environment() -> Environment:
    """Return the templates' environment, which escapes all text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("lossscope.reports.render", ""),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(cell=cell_html, clipped=_clipped, head=head_text, printable=printable, unescaped=Markup)
    made.filters.update(opening=_opening, with_commands=_with_commands, limits_of=limits_of)
    made.tests["has_data"] = has_data
    made.globals["wide"] = lambda figure: isinstance(figure, Forest) and not figure.narrow
    return made


def _page(template: str, page: Report | Document, figures: Sequence[FigureData]) -> str:
    """Return a page from its template."""
    plots = {figure.key: data for figure in figures if has_data(figure) and (data := plot_data(figure))}
    arms = [{"name": printable(arm.name), "arm": arm.hue} for arm in page.arms]
    marks = TableMarks(page.arms)
    made = environment()
    made.filters.update(column_marks=marks.column, row_marks=marks.row, cell_marks=marks.cell)
    made.globals["first_note"] = _FirstNotes()
    return made.get_template(template).render(
        page=page,
        # drawings are no text: ElementTree has escaped what they show
        pictures={figure.key: inline_svg(figure) for figure in figures if has_data(figure)},
        assets=page_assets(plots=bool(plots)),
        data=embedded({"hues": len(PALETTE), "arms": arms, "plots": plots}),
        terms=terms_of(page),
        keys={figure.key for figure in figures},
    )


class _FirstNotes:
    """The tables whose notes a page has shown."""

    def __init__(self) -> None:
        self._shown: dict[str, Table] = {}

    def __call__(self, table: Table) -> Table | None:
        """Return the earlier table with the note of this one; None if the note is new, which is then remembered."""
        first = self._shown.setdefault(table.note, table)
        return None if first is table else first


def _opening(caption: str) -> tuple[str, str]:
    """Return the first sentence of a long caption, and the rest; of a short one, all of it and nothing."""
    first, *rest = _SENTENCE.split(caption, 1) if len(caption) > _LONG_CAPTION else [caption]
    return first, "".join(rest)


def _with_commands(words: str) -> Markup:
    """Return a sentence, escaped, with the commands between its backticks as code."""
    from markupsafe import Markup, escape

    return Markup(_COMMAND.sub(r"<code>\1</code>", str(escape(printable(words)))))


def _clipped(words: str) -> str:
    """Return text that is not too long for the name of a page."""
    return words if len(words) <= _LONGEST_TITLE else f"{words[: _LONGEST_TITLE - 1]}…"
