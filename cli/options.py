"""Options and arguments shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

__all__ = ["ForceOption", "FormatOption", "JsonOption", "OutputOption", "RunPaths", "RunsFolder"]

# existence is checked by `open_runs`, whose message names the path and the next command
RunPaths: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.", show_default=False)
]
RunsFolder: TypeAlias = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="A folder of runs.")]
FormatOption: TypeAlias = Annotated[
    Literal["text", "json", "markdown", "html"],
    typer.Option("--format", help="Output format; html includes the figures."),
]
OutputOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to a file instead of stdout.", show_default=False),
]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace an existing file.")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
