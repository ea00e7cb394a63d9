"""`lossscope report`: reports of recorded runs as text, JSON or HTML, without measuring and without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lossscope.cli.options import ForceOption, FormatOption, OutputOption, RunPaths
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.run import Run
    from lossscope.reports.content import Report
    from lossscope.reports.render.rendering import Format

__all__ = ["dynamics", "entropy", "every", "flatness", "opened", "overview", "report_app", "sharpness"]

report_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Report on recorded runs. Nothing is measured or trained.",
)


@report_app.command()
def overview(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Report every arm at the end of training in one table, with the figures of all reports.

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
    """Report Hessian eigenvalues with bounds, trace with error bars, edge ratios, and their cost.

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
    """Report spectral entropy, rank and condition number of gradient, momentum, update and weight.

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
    """Report the four numbers of flatness, over steps and over the train loss, and the other measures of it.

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
    """Report training dynamics from recorded steps and minibatch pairs.

    Autocorrelation of shear and gradient, trigger statistics, gradient noise scale, quadratic-model error, shear-force
    angle, Fisher energy, and layer-wise remainders.

    Example: lossscope report dynamics runs/demo
    """
    from lossscope.reports import dynamics as report

    _write(report, runs, format, output, force)


@report_app.command("all")
def every(
    runs: RunPaths,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Report everything that the other reports have, on one page.

    Example: lossscope report all runs/demo --format html --output report.html
    """
    from lossscope.reports import dynamics, flatness, overview, sharpness, spectral_entropy
    from lossscope.reports.shared.merged import merged

    pages = (overview, sharpness, spectral_entropy, flatness, dynamics)
    _write(lambda found: merged([page(found) for page in pages]), runs, format, output, force)


def opened(paths: Sequence[Path]) -> list[Run]:
    """Return the runs at the paths, each once, in the order given."""
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
    """Build the report of the runs and write it to the file, or to stdout without one."""
    from lossscope.reports import render
    from lossscope.reports.render.output import refuse_taken, write_text
    from lossscope.reports.shared.condensed import condensed

    if output is not None:
        refuse_taken(output, force=force)
    runs = opened(paths)
    made = report(runs)
    if format == "text":
        made = condensed(made, len(runs))
    if output is None:
        echo(render(made, format, width=text_width()), format=format)
    else:
        write_text(output, render(made, format), force=force)
