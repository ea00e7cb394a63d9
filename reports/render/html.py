"""HTML renderer: one self-contained page with inline figures, no network access and no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Document, FigureData, Forest, Report, outcome_words
from lossscope.reports.render.drawing import figure_svg
from lossscope.reports.render.style import ROLES
from lossscope.reports.shared.number_format import cell_text, header

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["document_html", "inline_svg", "report_html"]

_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")


def report_html(report: Report) -> str:
    """Return the report as a self-contained page: figures are inline SVG, all text is escaped."""
    return _environment().get_template("page.html.j2").render(report=report, pictures=_pictures(report.figures))


def document_html(document: Document) -> str:
    """Return the document as a self-contained page, like `report_html`; figures of each section are prefixed by it."""
    own = [
        replace(section, figures=tuple(replace(one, key=f"s{place}-{one.key}") for one in section.figures))
        for place, section in enumerate(document.sections)
    ]
    pictures = _pictures(tuple(figure for section in own for figure in section.figures))
    page = replace(document, sections=tuple(own))
    return _environment().get_template("document.html.j2").render(document=page, pictures=pictures)


def _environment() -> Environment:
    """Return the templates' environment, which escapes all text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lossscope.reports.render", ""),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=cell_text, header=header, outcome=outcome_words, printable=printable)
    environment.globals["wide"] = lambda figure: isinstance(figure, Forest) and not figure.narrow
    return environment


def _pictures(figures: Sequence[FigureData]) -> dict[str, Markup]:
    """Return the drawing of each figure by its key."""
    from markupsafe import Markup

    # the only markup not escaped by the template: ElementTree has escaped it already
    return {figure.key: Markup(inline_svg(figure)) for figure in figures}


def inline_svg(figure: FigureData) -> str:
    """Return the figure as an `<svg>` element.

    Its identifiers are prefixed with the figure's key, so that several figures can share a page; its colors are
    variables of the page; screen readers see one image with the numbers as its text.
    """
    root = ElementTree.fromstring(figure_svg(figure))
    for parent in root.iter():
        for child in [one for one in parent if _local(one.tag) == "metadata"]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        _adapt(element, figure.key)
    del root.attrib["width"], root.attrib["height"]
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-label", printable(_alternative(figure)))
    return ElementTree.tostring(root, encoding="unicode")


def _alternative(figure: FigureData) -> str:
    """Return the alternative text of a figure: its title and its numbers."""
    absent = [f"{name}: not measured" for name in figure.absent]
    return f"{figure.title}. {'; '.join((*figure.summary, *absent)) or 'No data'}."


def _adapt(element: ElementTree.Element, key: str) -> None:
    """Prefix identifiers and references, and replace colors by variables."""
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set("id", f"{key}-{value}")
        elif name == _XLINK:
            del element.attrib[name]
            element.set("href", f"#{key}-{value.removeprefix('#')}")
        else:
            element.set(name, _colored(_REFERENCE.sub(rf"url(#{key}-\1)", value)) if name != "d" else value)


def _colored(style: str) -> str:
    """Return a style with each palette color replaced by a variable of the page."""
    for color, variable in ROLES.items():
        style = style.replace(color, f"var({variable}, {color})")
    return style


def _local(tag: str) -> str:
    """Return a tag without its namespace, which HTML does not need."""
    return tag.rpartition("}")[2]
