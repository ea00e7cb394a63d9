"""A report as plain text, 118 columns wide."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Final, Literal

from lossscope.reports.content import Cell, Column, FigureData, Finding, Missing, Quantity, Report, Table, outcome_words
from lossscope.reports.shared.number_format import cell_text, header, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table as Grid

__all__ = ["report_text", "table_text"]

WIDTH: Final = 118
_FIGURES: Final = (
    "Figures in numbers: median ± widest measurement error [range over seeds], or as they say; --format html draws them"
)
_NAME: Final = 16  # letters of a name that are kept together before numbers break


def report_text(report: Report) -> str:
    """The report as text, without colors or control codes: it reads the same in a terminal, a pipe and a file."""
    out, console = _console()
    _heading(console, report.title, "=")
    console.print(_plain(f"{report.subtitle}\n"))
    for note in report.notes:
        _bullet(console, "*", note)
    _heading(console, "Findings", "-")
    for finding in report.findings:
        _finding(console, finding)
    for table in report.tables:
        _table(console, table)
    _heading(console, _FIGURES, "-")
    for figure in report.figures:
        _figure(console, figure)
    if report.missing:
        _heading(console, "What is missing", "-")
    for missing in report.missing:
        _missing(console, missing)
    _table(console, report.provenance)
    return _tidy(out)


def table_text(table: Table) -> str:
    """One table as text."""
    out, console = _console()
    _table(console, table)
    return _tidy(out)


def _console() -> tuple[StringIO, Console]:
    """A console that writes plain text into a string."""
    from rich.console import Console

    out = StringIO()
    console = Console(
        file=out, width=WIDTH, color_system=None, force_terminal=False, highlight=False, markup=False, emoji=False
    )
    return out, console


def _tidy(out: StringIO) -> str:
    """What was written, without trailing blanks."""
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines()) + "\n"


def _heading(console: Console, words: str, rule: str) -> None:
    """A heading, underlined."""
    console.print(f"\n{words}\n{rule * len(words)}")


def _bullet(console: Console, mark: str, words: str) -> None:
    """A paragraph hanging from a mark."""
    from rich.padding import Padding
    from rich.table import Table as Grid

    grid = Grid.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    grid.add_row(_plain(mark), _plain(words))
    console.print(Padding(grid, (0, 0, 0, 1)))


def _finding(console: Console, finding: Finding) -> None:
    """A finding: outcome first, numbers and source below."""
    words = f"{finding.claim}\n{finding.numbers}  ({finding.source})"
    _bullet(console, f"{outcome_words(finding.outcome):<19}", words)


def _figure(console: Console, figure: FigureData) -> None:
    """A figure in numbers: one line per arm, and the arms without any."""
    absent = [f"{arm}: no number" for arm in figure.absent]
    _bullet(console, "*", "\n".join([figure.title, *(f"  {line}" for line in (*figure.summary, *absent))]))


def _missing(console: Console, missing: Missing) -> None:
    """What is missing and how to get it."""
    _bullet(console, "*", f"{missing.what}: {missing.how}")


def _table(console: Console, table: Table) -> None:
    """A table with its title above and its note below."""
    _heading(console, table.title, "-")
    if not table.rows:
        console.print("  none")
        return
    grid = _grid(table, between=" ")
    if sum(_natural(grid)) > _room(grid):  # then each interval stands below its number
        grid = _grid(table, between="\n")
    _fit(grid)
    console.print(grid)
    if table.note:
        _bullet(console, "*", table.note)


def _grid(table: Table, *, between: str) -> Grid:
    """The table as a grid of cells; `between` stands between a number and its interval."""
    from rich import box
    from rich.table import Table as Grid

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column in table.columns:
        side: Literal["left", "right"] = "left" if column.words else "right"
        grid.add_column(_plain(_header(column)), justify=side, overflow="fold")
    for row in table.rows:
        grid.add_row(*(_plain(_cell(cell, between)) for cell in row))
    return grid


def _fit(grid: Grid) -> None:
    """Give every column its width: names give way first, then numbers; a header breaks between its words only."""
    words, lines = _longest(grid, str.split, head=True), _natural(grid)
    values = _longest(grid, str.splitlines, head=False)
    whole = [
        max(word, min(value, _NAME) if column.justify == "left" else value)
        for column, word, value in zip(grid.columns, words, values, strict=True)
    ]
    for floors in (whole, words, [1] * len(words)):
        widths = _narrowed(lines, floors, _room(grid))
        if sum(widths) <= _room(grid):
            break
    for column, width in zip(grid.columns, widths, strict=True):
        column.width = width


def _narrowed(widths: Sequence[int], floors: Sequence[int], room: int) -> list[int]:
    """The widths, the widest cut down to its floor first, until all of them fit or none can give way."""
    found = list(widths)
    while sum(found) > room:
        wide = [place for place, width in enumerate(found) if width > floors[place]]
        if not wide:
            break
        found[max(wide, key=lambda place: found[place])] -= 1
    return found


def _natural(grid: Grid) -> list[int]:
    """The width of each column in which no line breaks."""
    both = (_longest(grid, str.splitlines, head=head) for head in (True, False))
    return [max(pair) for pair in zip(*both, strict=True)]


def _longest(grid: Grid, parts: Callable[[str], Sequence[str]], *, head: bool) -> list[int]:
    """The longest part, a line or a word, in the header or in the cells of each column."""
    from rich.cells import cell_len

    return [
        max(
            (cell_len(part) for one in ([column.header] if head else column.cells) for part in parts(str(one))),
            default=1,
        )
        for column in grid.columns
    ]


def _room(grid: Grid) -> int:
    """What the columns have together: between two of them there are three blanks."""
    return WIDTH - 3 * (len(grid.columns) - 1)


def _header(column: Column) -> str:
    """The title of a column, its unit on a line of its own to keep the column narrow."""
    return header(column).replace(f" ({column.unit})", f"\n({column.unit})")


def _cell(cell: Cell, between: str) -> str:
    """A cell in words, a quantity with `between` before its interval and before how many numbers are missing."""
    words = cell_text(cell)
    return re.sub(r" (?=\[|\(\d+ missing)", between, words) if isinstance(cell, Quantity) else words


def _plain(words: str) -> RenderableType:
    """Words that rich does not interpret."""
    from rich.text import Text

    return Text("\n".join(printable(line) for line in words.split("\n")))
