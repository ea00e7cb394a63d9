"""Figures as files of their own, with their title and what they cannot show above the drawing."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import FigureData, limits_of
from lossscope.reports.render.drawing import draw_figure, saved_svg
from lossscope.reports.render.style import RC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "picture"]

PICTURES: Final = (".png", ".svg")
_DOTS: Final = 200  # per inch, of PNG
_TITLE, _SMALL = 10.0, 7.5  # points
_LINE: Final = 1.35  # heights of letters
_LETTERS: Final = 18.5  # of a small line per inch
_MARGIN: Final = 0.08  # inches
_INCH: Final = 72.0  # points
_SVG: Final = "http://www.w3.org/2000/svg"


def picture(data: FigureData, ending: str) -> bytes:
    """Return a figure as the contents of a file. Equal data gives equal bytes.

    Args:
        data: The figure.
        ending: `.png` or `.svg`.
    """
    from matplotlib import rc_context

    with rc_context(RC):
        drawing = draw_figure(data)
        heading = _heading(data, float(drawing.get_size_inches()[0]))
        return _stacked_svg(heading, drawing) if ending == ".svg" else _stacked_png(heading, drawing)


def _heading(data: FigureData, width: float) -> Figure:
    """Return a figure of the title, and of what the picture cannot show."""
    from matplotlib.figure import Figure

    lines = [part for line in limits_of(data) for part in textwrap.wrap(printable(line), int(_LETTERS * width))]
    height = _LINE * (_TITLE + _SMALL * len(lines)) / _INCH + 2 * _MARGIN
    figure = Figure(figsize=(width, height))
    left, top = _MARGIN / width, 1 - _MARGIN / height
    figure.text(left, top, printable(data.title), fontsize=_TITLE, va="top")
    for number, line in enumerate(lines):
        down = _LINE * (_TITLE + _SMALL * number) / _INCH / height
        figure.text(left, top - down, line, fontsize=_SMALL, color=str(RC["xtick.color"]), va="top")
    return figure


def _stacked_png(*figures: Figure) -> bytes:
    """Return figures of equal width below each other as PNG."""
    from matplotlib.image import imsave

    out = BytesIO()
    metadata: dict[str, Any] = {"Software": None}
    imsave(out, np.concatenate([_pixels(one) for one in figures]), format="png", dpi=_DOTS, metadata=metadata)
    return out.getvalue()


def _pixels(figure: Figure) -> Any:
    """Return a figure as `(height, width, 4)` on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(_DOTS)
    figure.patch.set(facecolor="white", alpha=1.0)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _stacked_svg(*figures: Figure) -> bytes:
    """Return figures of equal width below each other as SVG on white."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    sizes = [[_INCH * float(side) for side in one.get_size_inches()] for one in figures]
    width, height = sizes[0][0], sum(one[1] for one in sizes)
    box = {"width": f"{width:g}pt", "height": f"{height:g}pt", "viewBox": f"0 0 {width:g} {height:g}", "version": "1.1"}
    root = ElementTree.Element(f"{{{_SVG}}}svg", box)
    ElementTree.SubElement(root, f"{{{_SVG}}}rect", {"width": "100%", "height": "100%", "fill": "white"})
    down = 0.0
    for figure, size in zip(figures, sizes, strict=True):
        part = ElementTree.fromstring(saved_svg(figure))
        part.attrib |= {"width": f"{size[0]:g}", "height": f"{size[1]:g}", "y": f"{down:g}"}
        root.append(part)
        down += size[1]
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
