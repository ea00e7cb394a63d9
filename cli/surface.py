"""`lossscope surface`: the loss around and between saved points, with what the picture cannot show."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from lossscope.cli.amounts import duration_text
from lossscope.cli.options import ForceOption, FormatOption, OutputOption
from lossscope.cli.progress import progress_bar
from lossscope.cli.terminal import echo, text_width

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.lines import CellOptions
    from lossscope.landscape.surfaces.several import SeedPairs
    from lossscope.landscape.surfaces.targets import Targets
    from lossscope.reports.content import Report
    from lossscope.reports.surfaces.made import Made

__all__ = ["surface"]

_LONG: Final = 3600.0  # seconds from which a picture asks for --yes
_POINTS: Final = {"path": 21}
_USUAL_POINTS: Final = 25
_DRAWS: Final = {"fan": 32, "random": 3}
_IDLE: Final = {  # options that a picture does not have
    "fan": ("3d", "interactive"),
    "path": ("radius", "draws", "3d", "interactive", "jobs"),
    "points": ("radius", "draws"),
    "pca": ("radius", "draws"),
    "eigen": ("draws",),
}


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
        Literal["fan", "path", "random", "eigen", "pca", "points"],
        typer.Option(
            help="fan: random relative directions through each point; path: straight lines from each to the next; "
            "random: filter-normalized planes; eigen: the plane of two Hessian eigenvectors; pca: principal components "
            "of the checkpoints of a run, or of the points; points: the plane through three of them."
        ),
    ] = "fan",
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="Step of the checkpoint of each run. Default: the last one.")
    ] = None,
    radius: Annotated[
        float | None,
        typer.Option(
            help="Largest relative noise of a fan (default: where the loss has risen by up to 1), half the side of a "
            "random plane as a share of the weights (0.5), or of an eigenvector plane as a distance."
        ),
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="Losses on each line or side. Default: 25, and 21 of a path.", show_default=False)
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="Directions of a fan (32), or random planes (3).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the directions.", min=0)] = 0,
    null: Annotated[
        bool,
        typer.Option(
            help="Of a path: also the barriers that chance alone makes, to a copy of the first point with permuted "
            "neurons, and to a run beside each that differs from it in its seeds."
        ),
    ] = True,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Write all numbers to this file, too.")
    ] = None,
    three_d: Annotated[
        bool, typer.Option("--3d", help="Of a plane: a surface with the loss as height in place of contours.")
    ] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png|FILE.svg",
            help="Write the figure to this file, too; a second one beside it, with its name.",
        ),
    ] = None,
    interactive: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Of a plane: write a page with a surface to turn, too, of about 5 MB; it asks nothing of the network. "
            "Needs plotly: pip install 'lossscope[interactive]'.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes that evaluate losses. Default: 1.", min=1, show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the cost and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Draw even if it takes more than an hour.")] = False,
    format: FormatOption = "text",
    output: OutputOption = None,
    force: ForceOption = False,
) -> None:
    """Draw the loss along random relative directions around points, on straight paths between them, or on planes.

    Nothing is trained, and no weight is changed. HTML has the figures. Losses of pictures that take
    more than two seconds are kept in the folder surface-cells beside --output or --data: a call that was stopped goes
    on there, and says so.

    Example: lossscope surface runs/demo/ars2-base-s0 --format html --output fan.html

    Example: lossscope surface a.pt b.pt --objective mine.py:objective --plane path
    """
    from lossscope.landscape.errors import ConfigError
    from lossscope.landscape.surfaces.several import loss_seconds, seed_pairs
    from lossscope.landscape.surfaces.targets import targets as found_targets
    from lossscope.reports import render
    from lossscope.reports.render.output import refuse_taken, write_text

    for file in (output, data, picture, interactive):
        if file is not None:
            refuse_taken(file, force=force)
    given = {"radius": radius, "draws": draws, "checkpoint": checkpoint, "3d": three_d or None, "jobs": jobs}
    _check_use(plane, len(targets), {**given, "interactive": interactive})
    _check_files(picture, interactive)
    found = found_targets(targets, objective, checkpoint, history=plane == "pca" and checkpoint is None)
    size = _POINTS.get(plane, _USUAL_POINTS) if points is None else points
    some = _DRAWS.get(plane, 1) if draws is None else draws
    pairs = seed_pairs(found) if plane == "path" and null else None
    count = _losses(found, plane, size, some, pairs, chosen=radius is None)
    seconds = count * loss_seconds(found)
    cost = f"{count} losses at most, about {duration_text(seconds)}"
    cost += f", and {len(found.points) * some} Hessian products for quadratic models" if plane == "fan" else ""
    if dry_run:
        echo(cost)
        return
    if seconds > _LONG and not yes:
        raise ConfigError(f"this takes {cost}: add --yes, or take fewer --points or --draws")
    made = _made(found, shlex.join(["lossscope", *sys.argv[1:]]))
    with _counted(plane, count) as tell:
        draw = _fans if plane == "fan" else partial(_plane, kind=plane, raised=three_d)
        if plane == "path":
            draw = partial(_paths, pairs=pairs)
        settings: dict[str, Any] = {
            "radius": radius,
            "draws": some,
            "seed": seed,
            "cells": _cells(output or data, jobs),
        }
        report = draw(found, made, data, points=size, progress=tell, **settings)
    _save_figures(report, picture, interactive)
    if output is None:
        echo(render(report, format, width=text_width()), format=format)
    else:
        write_text(output, render(report, format), force=force)


def _check_files(picture: Path | None, interactive: Path | None) -> None:
    """Reject endings that no picture has, and a page to turn without its package, before anything is evaluated."""
    from lossscope.landscape.errors import ConfigError
    from lossscope.reports.render.picture import PICTURES

    if picture is not None and picture.suffix not in PICTURES:
        raise ConfigError(f"--picture must end in {' or '.join(PICTURES)}, got {picture}")
    if interactive is not None:
        from lossscope.reports.render.interactive import require_plotly

        require_plotly()


def _save_figures(report: Report, picture: Path | None, interactive: Path | None) -> None:
    """Write the figures of a report to files of their own."""
    from lossscope.landscape.storage.files import atomic_write
    from lossscope.reports.render.interactive import interactive_page
    from lossscope.reports.render.picture import picture as drawn

    for place, figure in enumerate(report.figures if picture is not None else ()):
        assert picture is not None
        file = picture if place == 0 else picture.with_stem(f"{picture.stem}-{figure.key}")
        atomic_write(file, drawn(figure, file.suffix))
    if interactive is not None:
        atomic_write(interactive, interactive_page(report.figures[0]).encode())


def _cells(file: Path | None, jobs: int | None) -> CellOptions:
    """Return how losses are evaluated: finished ones are kept beside the file that is written."""
    from lossscope.landscape.surfaces.lines import CellOptions

    return CellOptions(folder=None if file is None else file.parent / "surface-cells", jobs=jobs or 1)


@contextmanager
def _counted(label: str, count: int) -> Iterator[Callable[[int], None]]:
    """Return a callback for the number of further losses, drawn as a progress bar."""
    done = 0

    def tell(more: int) -> None:
        """Count losses."""
        nonlocal done
        done += more
        bar(min(done, count), count, "")

    with progress_bar(label) as bar:
        yield tell


def _check_use(plane: str, given: int, options: Mapping[str, object]) -> None:
    """Reject a number of points of which there is no such picture, and options that it does not have."""
    from lossscope.landscape.errors import ConfigError

    if plane == "path" and given < 2:
        raise ConfigError("--plane path needs at least two runs or files, got 1: name the other end")
    if plane in ("random", "eigen") and given != 1:
        raise ConfigError(f"--plane {plane} draws one run or file, got {given}: pictures of two are no comparison")
    if plane == "points" and given != 3:
        raise ConfigError(f"--plane points needs three runs or files, got {given}")
    idle = [name for name in _IDLE.get(plane, ()) if options[name] is not None]
    if plane == "pca" and given == 1 and options["checkpoint"] is not None:
        idle.append("checkpoint")
    if idle:
        raise ConfigError(f"--plane {plane} has no --{idle[0]}: leave it out")


def _losses(found: Targets, plane: str, points: int, draws: int, pairs: SeedPairs | None, *, chosen: bool) -> int:
    """Return the number of losses of a picture, at most."""
    from lossscope.landscape.surfaces.several import losses_of_fans, losses_of_paths, losses_of_plane

    if plane == "fan":
        return losses_of_fans(found, points, draws, chosen=chosen)
    if plane == "path":
        return losses_of_paths(found, points, 0 if pairs is None else 1 + len(pairs.beside))
    return losses_of_plane(found, plane, points, draws)


def _fans(found: Targets, made: Made, data: Path | None, **settings: Any) -> Report:
    """Draw the fans, and write their numbers."""
    from lossscope.landscape.surfaces.saved_data import fan_rows, save_rows
    from lossscope.landscape.surfaces.several import fans_at
    from lossscope.reports.surfaces.fan_page import fan_report

    fans, notes = fans_at(found, **settings)
    if data is not None:
        save_rows(fan_rows(fans), data)
    return fan_report(fans, replace(made, notes=(*made.notes, *notes)))


def _paths(
    found: Targets,
    made: Made,
    data: Path | None,
    *,
    pairs: SeedPairs | None,
    points: int,
    seed: int,
    progress: Any,
    **others: Any,
) -> Report:
    """Draw the paths, and write their numbers."""
    from lossscope.landscape.surfaces.pictures import Nulls
    from lossscope.landscape.surfaces.saved_data import path_rows, save_rows
    from lossscope.landscape.surfaces.several import nulls_of, paths_between
    from lossscope.reports.surfaces.path_page import path_report

    paths, notes = paths_between(found, points=points, progress=progress)
    nulls = Nulls()
    if pairs is not None:
        nulls = nulls_of(found, pairs, points=points, seed=seed, progress=progress)
    if data is not None:
        save_rows(path_rows({**paths, **nulls.paths}), data)
    return path_report(paths, nulls, replace(made, notes=(*made.notes, *notes)))


def _plane(
    found: Targets, made: Made, data: Path | None, *, kind: Any, draws: int, raised: bool, **settings: Any
) -> Report:
    """Draw a plane, and write its numbers."""
    from lossscope.landscape.surfaces.saved_data import plane_rows, save_rows
    from lossscope.landscape.surfaces.several import plane_of
    from lossscope.reports.surfaces.plane_page import plane_report

    plane, notes = plane_of(found, kind, planes=draws, **settings)
    if data is not None:
        save_rows(plane_rows(plane), data)
    origin = found.points[-1 if kind == "pca" else 0].name
    return plane_report(plane, kind, origin, replace(made, notes=(*made.notes, *notes)), raised=raised)


def _made(found: Targets, command: str) -> Made:
    """Return how the pictures are made."""
    from lossscope import __version__
    from lossscope.landscape.surfaces.targets import data_notes
    from lossscope.reports.surfaces.made import Made

    units = {point.run.loss_unit for point in found.points if point.run is not None}
    unit = units.pop() if len(units) == 1 else ""
    objective = found.objective
    notes = data_notes(found.points, objective)
    return Made(__version__, command, objective.data_hash, f"{objective.samples:g}", unit, notes)
