"""`lossscope surface`: the loss around and between saved points, with what the picture cannot show."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lossscope.cli.amounts import duration_text
from lossscope.cli.options import ForceOption, FormatOption, OutputOption
from lossscope.cli.progress import progress_bar
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.targets import Targets
    from lossscope.reports.content import Report
    from lossscope.reports.surfaces.made import Made

__all__ = ["surface"]

_LONG: Final = 3600.0  # seconds from which a picture asks for --yes
_POINTS: Final = {"fan": 25, "path": 21}
_DRAWS: Final = 32


def surface(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILE...", help="Runs, or files of weights (.pt, .safetensors).", show_default=False
        ),
    ],
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:NAME",
            help="A function without arguments that returns the Objective; the weights are loaded into its model. This "
            "runs the code in FILE.py. Default: the workload of the first run.",
        ),
    ] = None,
    plane: Annotated[
        Literal["fan", "path"],
        typer.Option(help="fan: random directions through each point; path: straight lines from each to the next."),
    ] = "fan",
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="Step of the checkpoint of each run. Default: the last one.")
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(help="Largest relative noise of a fan. Default: where the loss has risen by up to 1."),
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="Losses on each line. Default: 25 of a fan, 21 of a path.", show_default=False)
    ] = None,
    draws: Annotated[int, typer.Option(help="Random directions of a fan.")] = _DRAWS,
    seed: Annotated[int, typer.Option(help="Seed of the directions.", min=0)] = 0,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write all numbers to this file, too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the cost and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Draw even if it takes more than an hour.")] = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Draw the loss along random relative directions around points, or on straight paths between them.

    Nothing is trained, and no weight is changed. HTML has the figures.

    Example: lossscope surface runs/demo/ars2-base-s0 --format html --output fan.html

    Example: lossscope surface a.pt b.pt --objective mine.py:objective --plane path
    """
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.surfaces.several import loss_seconds, losses_of_fans, losses_of_paths
    from lossscope.landscape.surfaces.targets import targets as found_targets
    from lossscope.reports import render
    from lossscope.reports.render.output import refuse_taken, write_text

    for file in (output, data):
        if file is not None:
            refuse_taken(file, force=force)
    if plane == "path" and len(targets) < 2:
        raise ConfigError("--plane path needs at least two runs or files, got 1: name the other end")
    found = found_targets(targets, objective, checkpoint)
    size = _POINTS[plane] if points is None else points
    fans = plane == "fan"
    count = losses_of_fans(found, size, draws, chosen=radius is None) if fans else losses_of_paths(found, size)
    seconds = count * loss_seconds(found)
    cost = f"{count} losses at most, about {duration_text(seconds)}"
    cost += f", and {len(found.points) * draws} Hessian products for quadratic models" if fans else ""
    if dry_run:
        echo(cost)
        return
    if seconds > _LONG and not yes:
        raise ConfigError(f"this takes {cost}: add --yes, or take fewer --points or --draws")
    command = shlex.join(["lossscope", *sys.argv[1:]])
    with progress_bar(plane) as bar:
        done = [0]

        def tell(more: int) -> None:
            done[0] += more
            bar(min(done[0], count), count, "")

        settings = {"points": size, "progress": tell}
        drawn = partial(_fans, radius=radius, draws=draws, seed=seed) if fans else _paths
        report = drawn(found, command=command, data=data, **settings)
    if output is None:
        echo(render(report, format, width=text_width()), format=format)
    else:
        write_text(output, render(report, format), force=force)


def _fans(found: Targets, *, command: str, data: Path | None, **settings: Any) -> Report:
    """Draw the fans, and write their numbers."""
    from lossscope.landscape.surfaces.saved_data import fan_rows, save_rows
    from lossscope.landscape.surfaces.several import fans_at
    from lossscope.reports.surfaces.fan_page import fan_report

    fans, notes = fans_at(found, **settings)
    if data is not None:
        save_rows(fan_rows(fans), data)
    return fan_report(fans, _made(found, command, notes))


def _paths(found: Targets, *, command: str, data: Path | None, **settings: Any) -> Report:
    """Draw the paths, and write their numbers."""
    from lossscope.landscape.surfaces.saved_data import path_rows, save_rows
    from lossscope.landscape.surfaces.several import paths_between
    from lossscope.reports.surfaces.path_page import path_report

    paths, notes = paths_between(found, **settings)
    if data is not None:
        save_rows(path_rows(paths), data)
    return path_report(paths, _made(found, command, notes))


def _made(found: Targets, command: str, notes: tuple[str, ...]) -> Made:
    """Return how the pictures were made."""
    from lossscope import __version__
    from lossscope.reports.surfaces.made import Made

    units = {point.run.loss_unit for point in found.points if point.run is not None}
    unit = units.pop() if len(units) == 1 else ""
    objective = found.objective
    return Made(__version__, command, objective.data_hash, f"{objective.samples:g}", unit, notes)
