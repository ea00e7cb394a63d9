"""Options and arguments that more than one command takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

__all__ = ["ForceOption", "FormatOption", "JsonOption", "OutputOption", "RunPaths", "RunsFolder"]

# Whether a path holds a run is for `open_runs` to say: it names the path and the next command.
RunPaths: TypeAlias = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Runs, or folders of runs.", show_default=False)
]
RunsFolder: TypeAlias = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="A folder of runs.")]
FormatOption: TypeAlias = Annotated[
    Literal["text", "json", "html"], typer.Option("--format", help="How to write it; html has the figures.")
]
OutputOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write to a file, not to stdout.", show_default=False),
]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
