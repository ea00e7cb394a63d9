"""`lossscope diff`: how far apart two checkpoints are, where, and what the loss does between them."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Final

import typer

from lossscope.cli.options import ForceOption, FormatOption, OutputOption
from lossscope.cli.progress import progress_bar
from lossscope.cli.terminal import echo, text_width

__all__ = ["diff"]

_ROWS: Final = 16  # modules and tensors in a table of text


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A run (its last checkpoint), RUN@STEP, or a file of weights (.safetensors, .pt)."
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The other one.")],
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="A function without arguments that returns the Objective; the weights are loaded into its model. This "
            "runs the code in FILE.py. Default: the workload of A, or of B, if it is a run of `lossscope train`.",
        ),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="A run of one optimizer with another seed, to be given twice or more: the distances and barriers "
            "of all pairs stand beside those of A and B. Default: the seeds of the arms of A and B in their folders.",
            show_default=False,
        ),
    ] = None,
    weights_only: Annotated[bool, typer.Option("--weights-only", help="Evaluate no loss.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Singular directions of each matrix that are compared.")] = 8,
    points: Annotated[int, typer.Option(min=3, help="Losses on each straight path.")] = 21,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Compare two checkpoints: distances, singular values, the barrier between them, and the loss change by module.

    Beside the numbers stand those of two seeds of one optimizer, where such runs are known.

    Example: lossscope diff runs/demo/adamw@rms-s0 runs/demo/ars2-base-s0

    Example: lossscope diff a.safetensors b.safetensors --objective mine.py:objective
    """
    from lossscope import __version__
    from lossscope.landscape.surfaces.diff import diff as measured
    from lossscope.reports import render
    from lossscope.reports.difference.report import difference_report
    from lossscope.reports.render.output import refuse_taken, write_text

    if output is not None:
        refuse_taken(output, force=force)
    with progress_bar("diff") as bar:
        found = measured(
            a,
            b,
            objective=objective,
            null=null or None,
            weights_only=weights_only,
            top=top,
            points=points,
            progress=bar,
        )
    report = difference_report(
        found, __version__, shlex.join(["lossscope", *sys.argv[1:]]), rows=_ROWS if format == "text" else None
    )
    if output is None:
        echo(render(report, format, width=text_width()), format=format)
    else:
        write_text(output, render(report, format), force=force)
