"""`lossscope compare`: which of two arms finds flatter minima, from recorded runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lossscope.cli.options import ForceOption, FormatOption, JsonOption, OutputOption
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.cli.sides import Sides
    from lossscope.reports.content import Document
    from lossscope.reports.render.rendering import Format

__all__ = ["compare", "write_document"]

_First = Annotated[str, typer.Argument(metavar="A", help="An arm, or a run or folder of runs.", show_default=False)]
_Second = Annotated[str, typer.Argument(metavar="B", help="The other one.", show_default=False)]
_In = Annotated[
    Path | None,
    typer.Option("--in", metavar="DIR", help="Folder of runs; A and B are arms in it.", show_default=False),
]
_Level = Annotated[
    str,
    typer.Option("--level", metavar="LOSS", help="Training loss to compare at; lowest: the lowest that all reach."),
]


def compare(
    a: _First,
    b: _Second,
    folder: _In = None,
    level: _Level = "lowest",
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the sharpness of two arms at equal training loss, over pairs of runs with equal seeds.

    A and B are arms in the folder of --in, or two runs, or two folders of runs. Nothing is measured or trained. One
    pair of runs gives a table and no verdict.

    Example: lossscope compare ars2-sync ars2-base --in runs/demo
    """
    from lossscope import __version__
    from lossscope.cli.sides import sides
    from lossscope.landscape.verdicts.judge import compare as judged
    from lossscope.reports.comparison.report import compare_report
    from lossscope.reports.render.output import refuse_taken

    if output is not None:
        refuse_taken(output, force=force)
    at = _level(level)
    found = sides(a, b, folder)
    verdict = judged(found.a, found.b, found.runs, level=at)
    document = compare_report(verdict, found.runs, version=__version__, command=_command(a, b, found, at))
    write_document(document, "json" if as_json else format, output, force=force)


def write_document(document: Document, format: Format, output: Path | None, *, force: bool) -> None:
    """Render a document, and write it to the file, or to stdout without one."""
    from lossscope.reports import render
    from lossscope.reports.render.output import write_text

    if output is None:
        echo(render(document, format, width=text_width()), format=format)
    else:
        write_text(output, render(document, format), force=force)


def _level(words: str) -> float | Literal["lowest"]:
    """Return the training loss that an option names."""
    import math

    from lossscope.landscape.errors import ConfigError

    if words == "lowest":
        return "lowest"
    try:
        level = float(words)
    except ValueError:
        level = math.nan
    if not 0 < level < math.inf:
        raise ConfigError(f"--level must be a training loss above 0, or lowest, got {words}")
    return level


def _command(a: str, b: str, found: Sides, level: float | Literal["lowest"]) -> str:
    """Return the command that makes the document again."""
    words = ["lossscope", "compare", a, b]
    words += [] if found.folder is None else ["--in", str(found.folder)]
    words += [] if level == "lowest" else ["--level", f"{level:g}"]
    return shlex.join(words)
