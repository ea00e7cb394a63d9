"""`lossscope report`: what existing runs say, as text, JSON or a page. Never measures, never loads torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lossscope.cli.options import ForceOption, FormatOption, OutputOption, RunPaths
from lossscope.cli.terminal import text_width

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.reports.content import Report
    from lossscope.reports.render.rendering import Format

__all__ = ["dynamics", "entropy", "flatness", "opened", "overview", "report_app", "sharpness"]

report_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Read runs and say what they hold. Nothing is measured anew.",
)


@report_app.command()
def overview(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Each arm at its end in one table, and the figures of all reports together, as the demo shows them.

    Example: lossscope report overview runs/demo
    """
    from lossscope.reports import overview as report

    _write(report, runs, format, output, force)


@report_app.command()
def sharpness(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Hessian eigenvalues with bounds, trace with error bars, R_dir of the step taken, and their cost.

    Example: lossscope report sharpness runs/demo
    """
    from lossscope.reports import sharpness as report

    _write(report, runs, format, output, force)


@report_app.command()
def entropy(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Spectral entropy, ranks and condition of gradient, momentum, update and weight.

    Example: lossscope report entropy runs/demo --format json
    """
    from lossscope.reports import spectral_entropy as report

    _write(report, runs, format, output, force)


@report_app.command()
def flatness(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Adaptive trace and Fisher-Rao norm over the train loss, and what the panel still lacks.

    Example: lossscope report flatness runs/demo --format html --output flatness.html
    """
    from lossscope.reports import flatness as report

    _write(report, runs, format, output, force)


@report_app.command()
def dynamics(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Report on the steps: memory, trigger, noise scale, step against model, shear angle, Fisher energy, layers.

    Example: lossscope report dynamics runs/demo
    """
    from lossscope.reports import dynamics as report

    _write(report, runs, format, output, force)


def opened(paths: Sequence[Path]) -> list[Run]:
    """The runs at the paths, each once, in the order given."""
    from lossscope.landscape.run import open_runs

    found = [run for path in paths for run in open_runs(path)]
    return list({run.path.resolve(): run for run in found}.values())


def _write(
    report: Callable[[Sequence[Run]], Report],
    paths: Sequence[Path],
    format: Format,
    output: Path | None,
    force: bool,
) -> None:
    """Make the report of the runs and write it to the file, or to stdout where there is none."""
    from lossscope.reports import render
    from lossscope.reports.render.output import refuse_taken, write_text

    if output is not None:
        refuse_taken(output, force=force)
    made = report(opened(paths))
    if output is None:
        typer.echo(render(made, format, width=text_width()), nl=False)
    else:
        write_text(output, render(made, format), force=force)
