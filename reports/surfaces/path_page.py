"""Straight paths as a report: the loss between two points, and the barrier with its error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Column, Quantity, Report, Statement, Table
from lossscope.reports.figure_content import Axis, Curve, Curves, Numbers
from lossscope.reports.shared.number_format import plain, quantity_text
from lossscope.reports.shared.quantities import number
from lossscope.reports.surfaces.made import Made

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.pictures import Path

__all__ = ["path_report"]

_LIMITS: Final = (
    "The curvature along a straight path is that of one direction, which neither basin prefers: it says nothing about "
    "which end is flatter. Neurons of two networks may be permuted, so that a barrier need not separate two functions.",
)
_RESTATED: Final = (
    "The network has BatchNorm: at each point its statistics were measured anew on the same data, as those of one end "
    "do not belong to the weights in between. The dashed line has the statistics of the first point."
)


def path_report(paths: Mapping[str, Path], made: Made) -> Report:
    """Return the straight paths between points as a report.

    Args:
        paths: Paths by the names of their ends.
        made: How the report was made.
    """
    restated = any(one.restated is not None for one in paths.values())
    facts = {"points": str(len(next(iter(paths.values())).shares)), "seconds": plain(_seconds(paths), 2)}
    return Report(
        kind="surface",
        title="Loss on straight paths",
        subtitle="; ".join(paths),
        findings=(),
        tables=(_table(paths, made.unit),),
        figures=(_figure(paths, made.unit, restated=restated),),
        notes=(*made.notes, *((_RESTATED,) if restated else ()), *_LIMITS),
        missing=(),
        provenance=made.table(facts),
        summary=tuple(_statement(name, one) for name, one in paths.items()),
    )


def _statement(name: str, path: Path) -> Statement:
    """Return what a path shows, in words."""
    ends = f"from {plain(number(path.drawn[0]), 4)} to {plain(number(path.drawn[-1]), 4)}"
    if not math.isfinite(path.barrier):
        return Statement(f"{name}: the loss is not finite on the way {ends}: no barrier can be told", "act", "path")
    if path.barrier == 0:
        return Statement(
            f"{name}: no barrier; the loss never rises above the line between its ends ({ends})", "fine", "path"
        )
    height = quantity_text(Quantity(path.barrier, error=path.barrier_error or None))
    return Statement(f"{name}: a barrier of {height} above the line between the ends ({ends})", "look", "path")


def _figure(paths: Mapping[str, Path], unit: str, *, restated: bool) -> Curves:
    """Return the figure of all paths."""
    curves = []
    for hue, (name, one) in enumerate(paths.items()):
        curves.append(_curve(name, hue, one, _numbers(one.drawn), dashed=False))
        if one.restated is not None:
            curves.append(_curve(name, hue, one, _numbers(one.losses), dashed=True))
    return Curves(
        key="path",
        title="Loss on straight paths",
        caption="Loss at θ = (1 - t) A + t B.",
        x=Axis("share t of the way"),
        y=Axis("loss", unit),
        curves=tuple(curves),
        styles=("statistics measured anew", "statistics of the first point") if restated else None,
        summary=tuple(_statement(name, one).words for name, one in paths.items()),
    )


def _table(paths: Mapping[str, Path], unit: str) -> Table:
    """Return ends, barriers and lengths."""
    columns = (
        Column("path", "path", words=True),
        Column("first", "loss at the first end", unit),
        Column("second", "at the second", unit),
        Column(
            "barrier",
            "barrier",
            unit,
            "largest height above the line between the ends; the error is that of the "
            "grid, by a parabola through three points",
        ),
        Column("distance", "length", "", "in the space of the parameters"),
    )
    rows = [
        (
            name,
            number(one.drawn[0]),
            number(one.drawn[-1]),
            Quantity(number(one.barrier), error=number(one.barrier_error)),
            one.distance,
        )
        for name, one in paths.items()
    ]
    return Table("path", "Barriers", columns, tuple(rows))


def _curve(name: str, hue: int, path: Path, losses: Numbers, *, dashed: bool) -> Curve:
    """Return the line of a path."""
    return Curve(name, hue, _numbers(path.shares), losses, losses, losses, (None,) * len(losses), 1, dashed=dashed)


def _numbers(values: object) -> Numbers:
    return tuple(number(one) for one in values)  # type: ignore[attr-defined]


def _seconds(paths: Mapping[str, Path]) -> float:
    return sum(one.seconds for one in paths.values())
