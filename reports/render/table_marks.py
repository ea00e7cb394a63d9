"""Cells of tables as HTML: places where a line may break, and the arm and the layer that a row is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Arm, Cell, Column, Table
from lossscope.reports.render.terms import explanation
from lossscope.reports.shared.number_format import cell_text, header

if TYPE_CHECKING:
    from markupsafe import Markup

__all__ = ["TableMarks", "cell_html", "head_text"]

_ARMS: Final = ("arm", "run")  # keys of columns that name an arm, or a run of one
_LAYERS: Final = ("tensor", "matrix", "block", "module")  # keys of columns that name a layer
_LONGEST: Final = 160  # characters of a cell
_BARS: Final = re.compile("[\u2581-\u2588 ·–-]+")  # a sparkline, which stays on one line
_BREAKS: Final = re.compile(r"(?<= )(?=\[|\(\d+ missing\))|(?<=[-_./,=:])(?=[^\W\d_]{2})")


def cell_html(cell: Cell) -> Markup:
    """Return the text of a cell, with places where its line may break: before an interval, and inside long names.

    A text of more than 160 characters is cut; the whole is in the `title` that `TableMarks.cell` gives.
    """
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in _BREAKS.split(_cut(cell_text(cell))))


def head_text(column: Column) -> str:
    """Return the title of a column with its unit, cut as cells are."""
    return _cut(printable(header(column)))


def _cut(words: str) -> str:
    return words if len(words) <= _LONGEST else f"{words[: _LONGEST - 1]}…"


class TableMarks:
    """Attributes of the columns, rows and cells of the tables of a page."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self._arms = {arm.name: arm.hue for arm in arms}
        self._runs = {name: arm.hue for arm in arms for name in arm.runs}

    def column(self, column: Column) -> Markup:
        """Return the attributes of a column's head: its arm, and its meaning or its whole text where it is cut."""
        title = explanation(column) or (column.title if len(column.title) > _LONGEST else None)
        return _attributes({"class": "words" if column.words else None, "data-arm": self._of(column), "title": title})

    def row(self, table: Table, row: Sequence[Cell]) -> Markup:
        """Return the attributes of a row: the number of its arm, and its layer."""
        cells = {column.key: cell for column, cell in zip(table.columns, row, strict=True) if isinstance(cell, str)}
        arm = self._arms.get(cells.get("arm", ""), self._runs.get(cells.get("run", "")))
        layer = next((cells[key] for key in _LAYERS if cells.get(key)), None)
        return _attributes({"data-arm": arm, "data-layer": layer})

    def cell(self, column: Column, cell: Cell) -> Markup:
        """Return the attributes of a cell: its kind, and its whole text where it is cut."""
        kind = "words" if column.words else None
        if column.words and isinstance(cell, str) and _BARS.fullmatch(cell):
            kind = "words exact"
        cut = cell if isinstance(cell, str) and len(cell) > _LONGEST else None
        return _attributes({"class": kind, "title": cut})

    def _of(self, column: Column) -> int | None:
        """Return the number of the arm that a column is about; None if it is about none."""
        return self._arms.get(column.title) if column.key.startswith("arm_") else None


def _attributes(values: dict[str, str | int | None]) -> Markup:
    """Return attributes of an element, escaped; those without a value are left out."""
    from markupsafe import Markup, escape

    there = {name: value for name, value in values.items() if value not in (None, "")}
    return Markup("").join(
        Markup(' {}="{}"').format(name, escape(printable(str(value)))) for name, value in there.items()
    )
