"""Plain-text renderer: reports and tables at a given width, 80 to 120 columns.

A table that is too wide wraps: first each interval moves below its value, then the columns are spread over several
blocks that repeat the row labels. Numbers are never broken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Final, Literal

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Cell, Column, Finding, Missing, Quantity, Report, Table
from lossscope.reports.figure_content import FigureData, limits_of
from lossscope.reports.shared.number_format import cell_text, header

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as Grid

__all__ = ["NARROWEST", "WIDEST", "paragraph", "report_text", "rows_text", "table_text"]

NARROWEST: Final = 80  # columns; every table of a report fits
WIDEST: Final = 120  # columns; longer lines are hard to read
_FIGURES_NOTE: Final = (
    "Values are medians ± the largest measurement error [range over the runs of an arm], unless stated "
    "otherwise. "
    "--format html draws the figures."
)
_WITH_INTERVAL: Final = re.compile(r"-?[\d.e+-]+ \[[^\[\]]+\]( \*)?")  # a number with its interval, as text
_OUTCOME: Final = 4  # columns of the outcome of a finding
_NAME: Final = 16  # columns that names keep before the columns of a table are spread over blocks
_LABELS: Final = 3  # columns repeated in each block, at most


def report_text(report: Report, width: int = WIDEST) -> str:
    """Return the report as text without colors or control codes.

    Args:
        report: The report.
        width: Length of the longest line in columns.

    Returns:
        The text, ending in a newline.
    """
    out, console = _console(width)
    if report.alert:
        console.print(_plain(report.alert))
    _heading(console, report.title, "=")
    console.print(_plain(report.subtitle))
    for statement in report.summary:
        where = f" [figure {statement.figure}]" if statement.figure else ""
        _bullet(console, f"{statement.severity:<4}", f"{statement.words}{where}")
    for table in report.tables:
        if table.opens:
            _table(console, table)
    console.print()
    for note in report.notes:
        _bullet(console, "*", note)
    if report.findings:
        _heading(console, "Findings", "-")
    for finding in report.findings:
        _finding(console, finding)
    for table in report.tables:
        if not table.opens:
            _table(console, table)
    if report.figures:
        _heading(console, "Figures in numbers", "-")
        console.print(_plain(_FIGURES_NOTE))
    for figure in report.figures:
        _figure(console, figure)
    if report.missing:
        _heading(console, "Not available", "-")
    for missing in report.missing:
        _missing(console, missing)
    if report.provenance.rows:
        _table(console, report.provenance)
    return _tidy(out)


def table_text(table: Table, width: int = WIDEST) -> str:
    """Return one table as text.

    Args:
        table: The table.
        width: Length of the longest line in columns.

    Returns:
        Title, rows and note, ending in a newline.
    """
    out, console = _console(width)
    _table(console, table)
    return _tidy(out)


def rows_text(table: Table, width: int = WIDEST) -> str:
    """Return the header and the rows of a table as text, without title and note, ending in a newline."""
    out, console = _console(width)
    for place, grid in enumerate(_blocks(table, width)):
        if place:
            console.print()
        console.print(grid)
    return _tidy(out)


def paragraph(words: str, width: int = WIDEST, *, mark: str = "") -> str:
    """Return a paragraph as text, wrapped with a hanging indent after its mark, ending in a newline."""
    from rich.table import Table as Grid

    out, console = _console(width)
    grid = Grid.grid(padding=(0, 1, 0, 0), pad_edge=False)
    if mark:
        grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(*([_plain(mark)] if mark else []), _plain(words))
    console.print(grid)
    return _tidy(out)


def _console(width: int) -> tuple[StringIO, Console]:
    """Return a console that writes plain text into a string."""
    from rich.console import Console

    out = StringIO()
    console = Console(
        file=out, width=width, color_system=None, force_terminal=False, highlight=False, markup=False, emoji=False
    )
    return out, console


def _tidy(out: StringIO) -> str:
    """Return the text written so far without trailing blanks."""
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()) + "\n"


def _heading(console: Console, words: str, rule: str) -> None:
    """Print a heading with an underline."""
    console.print(_plain(f"\n{words}\n{rule * min(len(words), console.width)}"))


def _bullet(console: Console, mark: str, words: str) -> None:
    """Print a paragraph with a hanging indent after its mark."""
    from rich.padding import Padding
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(_plain(mark), _plain(words))
    console.print(Padding(grid, (0, 0, 0, 1)))


def _finding(console: Console, finding: Finding) -> None:
    """Print a finding: its outcome and claim, then the numbers and their source."""
    words = f"{finding.statement}\n{finding.numbers}  ({finding.source})"
    _bullet(console, f"{finding.mark:<{_OUTCOME}}", words)


def _figure(console: Console, figure: FigureData) -> None:
    """Print a figure in numbers: one line per arm, and the arms without data."""
    absent = [f"{arm}: not measured" for arm in figure.absent]
    _bullet(
        console,
        "*",
        "\n".join(
            [
                f"{figure.title} [{figure.key}]",
                *(f"  {line}" for line in (*limits_of(figure), *figure.summary, *absent)),
            ]
        ),
    )


def _missing(console: Console, missing: Missing) -> None:
    """Print an unavailable result and how to obtain it."""
    _bullet(console, "*", f"{missing.what}: {missing.how}")


def _table(console: Console, table: Table) -> None:
    """Print a table with its title above and its note below."""
    _heading(console, table.title, "-")
    if not table.rows:
        console.print("  none")
        return
    for place, grid in enumerate(_blocks(table, console.width)):
        if place:
            console.print()
        console.print(grid)
    if table.note:
        _bullet(console, "*", table.note)


def _blocks(table: Table, width: int) -> list[Grid]:
    """Return the table as one grid, or as several that each repeat the row labels, all within the width."""
    every = list(range(len(table.columns)))
    floors = _floors(_grid(table, every, between="\n"))
    if _total(floors) <= width:
        return [_fitted(table, every, width)]
    labels = _labels(table)
    while len(labels) > 1 and _total([*(floors[one] for one in labels), max(floors[len(labels) :])]) > width:
        labels.pop()
    blocks: list[list[int]] = []
    for place in every[len(labels) :]:
        if not blocks or _total([floors[one] for one in (*labels, *blocks[-1], place)]) > width:
            blocks.append([])
        blocks[-1].append(place)
    return [_fitted(table, [*labels, *block], width) for block in blocks or [[]]]


def _labels(table: Table) -> list[int]:
    """Return the columns that identify a row: the first, and the text columns that follow it directly."""
    count = next((place for place, one in enumerate(table.columns) if place and not one.words), len(table.columns))
    return list(range(min(count, _LABELS, max(1, len(table.columns) - 1))))


def _fitted(table: Table, places: Sequence[int], width: int) -> Grid:
    """Return these columns as a grid of at most this width; intervals stand below their values if they must."""
    grid = _grid(table, places, between=" ")
    if _total(_natural(grid)) > width:
        grid = _grid(table, places, between="\n")
    _fit(grid, width)
    return grid


def _grid(table: Table, places: Sequence[int], *, between: str) -> Grid:
    """Return these columns as a grid of cells; `between` separates a value from its interval."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column in (table.columns[place] for place in places):
        side: Literal["left", "right"] = "left" if column.words else "right"
        grid.add_column(_plain(_header(column)), justify=side, overflow="fold")
    for row in table.rows:
        grid.add_row(*(_plain(_cell(row[place], between)) for place in places))
    return grid


def _fit(grid: Grid, width: int) -> None:
    """Set the column widths: names give way first, then headers and values break at blanks, then names fold."""
    words, lines = _longest(grid, str.split, head=True), _natural(grid)
    unbroken = [
        1 if column.justify == "left" else word
        for column, word in zip(grid.columns, _longest(grid, str.split, head=False), strict=True)
    ]
    widths = lines
    for floors in (_floors(grid), words, unbroken):
        widths = _narrowed(lines, floors, width - _total([0] * len(lines)))
        if _total(widths) <= width:
            break
    for column, one in zip(grid.columns, widths, strict=True):
        column.width = one


def _floors(grid: Grid) -> list[int]:
    """Return the width that each column needs to keep its values on one line; names may wrap."""
    words, values = _longest(grid, str.split, head=True), _longest(grid, str.splitlines, head=False)
    return [
        max(word, min(value, _NAME) if column.justify == "left" else value)
        for column, word, value in zip(grid.columns, words, values, strict=True)
    ]


def _narrowed(widths: Sequence[int], floors: Sequence[int], room: int) -> list[int]:
    """Return the widths, the largest reduced first, until their sum is within the room or all are at their floors."""
    found = list(widths)
    while sum(found) > room:
        wide = [place for place, width in enumerate(found) if width > floors[place]]
        if not wide:
            break
        found[max(wide, key=lambda place: found[place])] -= 1
    return found


def _natural(grid: Grid) -> list[int]:
    """Return the width of each column at which no line wraps."""
    both = (_longest(grid, str.splitlines, head=head) for head in (True, False))
    return [max(pair) for pair in zip(*both, strict=True)]


def _longest(grid: Grid, parts: Callable[[str], Sequence[str]], *, head: bool) -> list[int]:
    """Return the width of the longest part, a line or a word, in the header or in the cells of each column."""
    from rich.cells import cell_len

    return [
        max(
            (cell_len(part) for one in ([column.header] if head else column.cells) for part in parts(str(one))),
            default=1,
        )
        for column in grid.columns
    ]


def _total(widths: Sequence[int]) -> int:
    """Return the width of a grid: its columns, and three blanks between neighbors."""
    return sum(widths) + 3 * (len(widths) - 1)


def _header(column: Column) -> str:
    """Return the title of a column, its interval and its unit on separate lines to keep the column narrow."""
    return header(column).replace(f" ({column.unit})", f"\n({column.unit})").replace(" [95 %]", "\n[95 %]")


def _cell(cell: Cell, between: str) -> str:
    """Return a cell as text, with `between` before the interval and before the number of missing values."""
    words = cell_text(cell)
    breaks = isinstance(cell, Quantity) or (isinstance(cell, str) and _WITH_INTERVAL.fullmatch(cell))
    return re.sub(r" (?=\[|\(\d+ missing)", between, words) if breaks else words


def _plain(words: str) -> RenderableType:
    """Return text that rich does not interpret."""
    from rich.text import Text

    return Text("\n".join(printable(line) for line in words.split("\n")))
