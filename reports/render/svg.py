"""Figures as `<svg>` elements of a page: colors are variables of the page, and no style attribute is left."""

from __future__ import annotations

import re
from typing import Final
from xml.etree import ElementTree

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import FigureData
from lossscope.reports.render.drawing import ARM, figure_svg
from lossscope.reports.render.style import ROLES

__all__ = ["alternative_text", "inline_svg"]

_XLINK: Final = "{http://www.w3.org/1999/xlink}href"
_REFERENCE: Final = re.compile(r"url\(#([^)]+)\)")
_FONT_SIZE: Final = re.compile(r"(?:^| )([\d.]+px)(?: |$)")


def inline_svg(figure: FigureData, *, prefix: str = "") -> str:
    """Return the figure as an `<svg>` element.

    Its identifiers are prefixed with the figure's key, so that several figures can share a page; its colors are
    variables of the page; screen readers see one image with the numbers as its text. Styles are attributes of their
    own names, because a strict policy of a page blocks `style=`; the drawing of an arm has its number as `data-arm`.

    Args:
        figure: The figure.
        prefix: Stands before the key, where pages of other figures may be around.
    """
    key = f"{prefix}{figure.key}"
    root = ElementTree.fromstring(figure_svg(figure))
    for parent in root.iter():
        for child in [one for one in parent if _local(one.tag) in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        _adapt(element, key)
    del root.attrib["width"], root.attrib["height"]
    root.attrib.pop("version", None)
    root.set("role", "img")
    root.set("aria-label", printable(alternative_text(figure)))
    return ElementTree.tostring(root, encoding="unicode")


def alternative_text(figure: FigureData) -> str:
    """Return the alternative text of a figure: its title and its numbers."""
    absent = [f"{name}: not measured" for name in figure.absent]
    return f"{figure.title}. {'; '.join((*figure.summary, *absent)) or 'No data'}."


def _adapt(element: ElementTree.Element, key: str) -> None:
    """Prefix identifiers and references, replace colors by variables, and styles by attributes."""
    for name, value in _attributes(element):
        if name == "id" and value.startswith(ARM):
            element.set("data-arm", value.removeprefix(ARM))
        elif name == "id":
            element.set("id", f"{key}-{value}")
        elif name == _XLINK:
            element.set("href", f"#{key}-{value.removeprefix('#')}")
        elif name == "d":
            element.set(name, value)
        else:
            element.set(name, _colored(_REFERENCE.sub(rf"url(#{key}-\1)", value)))


def _attributes(element: ElementTree.Element) -> list[tuple[str, str]]:
    """Return the attributes of an element, and remove them; those of its style have their own names."""
    found = dict(element.attrib)
    element.attrib.clear()
    for part in found.pop("style", "").split(";"):
        name, _, value = (one.strip() for one in part.partition(":"))
        if name == "font":  # the shorthand, of which the page has its own family
            name, value = "font-size", "".join(_FONT_SIZE.findall(value))
        if name and name != "font-family":
            found[name] = value
    return list(found.items())


def _colored(style: str) -> str:
    """Return a style with each palette color replaced by a variable of the page."""
    for color, variable in ROLES.items():
        style = style.replace(color, f"var({variable}, {color})")
    return style


def _local(tag: str) -> str:
    """Return a tag without its namespace, which HTML does not need."""
    return tag.rpartition("}")[2]
