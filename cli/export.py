"""`lossscope export`: runs as CSV, Parquet, lines of JSON or event files of TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lossscope.cli.options import ForceOption, RunPaths
from lossscope.cli.report import opened
from lossscope.cli.terminal import echo

__all__ = ["export"]


def export(
    runs: RunPaths,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the files.")],
    format: Annotated[
        Literal["csv", "parquet", "jsonl", "tensorboard"],
        typer.Option("--format", help="A file for each table (csv, parquet), or for each run (jsonl, tensorboard)."),
    ] = "csv",
    force: ForceOption = False,
) -> None:
    """Write the tables of runs for other programs, and print the files.

    In csv and parquet every row begins with its run and arm. In jsonl each line is a step with all its numbers, with
    names as in Weights & Biases: loss, curvature/lambda_max, tensors/0.weight/gradient_norm. In tensorboard the same
    numbers are scalars of an event file, one folder a run; it needs pip install 'lossscope[tensorboard]'.

    Example: lossscope export runs/demo --format parquet --output tables
    """
    from lossscope.landscape.export.tables import export as write

    for path in write(opened(runs), output, format, force=force):
        echo(str(path))
