"""Straight paths as a report: the loss between two points, and the barrier with its error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from lossscope.reports.content import Column, Missing, Quantity, Report, Statement, Table
from lossscope.reports.figure_content import Axis, Curve, Curves, Numbers
from lossscope.reports.shared.number_format import plain, quantity_text
from lossscope.reports.shared.quantities import number
from lossscope.reports.surfaces.made import Made

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.pictures import Nulls, Path

__all__ = ["path_report"]

_LIMITS: Final = (
    "One direction, which neither end prefers: it does not tell which end is flatter.",
    "Permuted neurons alone make a barrier: compare it with those of chance.",
)
_NOTES: Final = (
    "The curvature along a straight path is that of one direction, which neither basin prefers: at the ends of such "
    "lines SAM, flatter by a factor of 0.57, had 1.07 of the curvature of its counterpart (7 of 10 pairs of digits "
    "networks). Neurons of two networks may be permuted, so that a barrier need not separate two functions.",
)
_RESTATED: Final = (
    "The network has BatchNorm: at each point its statistics were measured anew on the same data, as those of one end "
    "do not belong to the weights in between. The dashed line has the statistics of the first point."
)
_CLEAR: Final = 2.0  # errors of a barrier above which it is told from none


def path_report(paths: Mapping[str, Path], nulls: Nulls, made: Made) -> Report:
    """Return the straight paths between points as a report.

    Args:
        paths: Paths by the names of their ends.
        nulls: Barriers that chance alone makes.
        made: How the report was made.
    """
    every = {**paths, **nulls.paths}
    restated = any(one.restated is not None for one in every.values())
    facts = {
        "points": str(len(next(iter(paths.values())).shares)),
        "parts of the samples": ", ".join(sorted({str(one.parts) for one in every.values()})),
        "seconds": plain(_seconds(every), 2),
    }
    tables = [_table("path", "Barriers", paths, made.unit)]
    if nulls.paths:
        tables.append(_table("null", "Barriers that chance alone makes", nulls.paths, made.unit))
    return Report(
        kind="surface",
        title="Loss on straight paths",
        subtitle="; ".join(paths),
        findings=(),
        tables=tuple(tables),
        figures=(_figure(paths, nulls, made.unit, restated=restated),),
        notes=(*made.notes, *nulls.notes, *((_RESTATED,) if restated else ()), *_NOTES),
        missing=tuple(_missing(every, nulls)),
        provenance=made.table(facts),
        summary=tuple(_statements(paths, nulls)),
    )


def _statements(paths: Mapping[str, Path], nulls: Nulls) -> Iterator[Statement]:
    """Yield what the paths show, beside what chance alone makes."""
    for name, one in paths.items():
        yield _statement(f"{name}, two seeds of {nulls.seeds[name]}" if name in nulls.seeds else name, one)
    for name, one in nulls.paths.items():
        yield Statement(f"for comparison, {name}: {_height(one)}", "fine", "path")
    highest = max((one.barrier for one in nulls.paths.values() if math.isfinite(one.barrier)), default=math.nan)
    for name, one in paths.items():
        if name not in nulls.seeds and 0 < one.barrier <= highest:
            yield Statement(
                f"{name}: chance alone makes a barrier of {plain(highest, 3)}: this one is no sign of two "
                "different solutions",
                "look",
                "path",
            )


def _statement(name: str, path: Path) -> Statement:
    """Return what a path shows, in words."""
    ends = f"from {plain(number(path.drawn[0]), 4)} to {plain(number(path.drawn[-1]), 4)}"
    if not math.isfinite(path.barrier):
        return Statement(f"{name}: the loss is not finite on the way {ends}: no barrier can be told", "act", "path")
    return Statement(f"{name}: {_height(path)} ({ends})", "fine" if path.barrier == 0 else "look", "path")


def _height(path: Path) -> str:
    """Return the barrier with its errors, in words."""
    if not math.isfinite(path.barrier):
        return "the loss is not finite on the way"
    if path.barrier == 0:
        below = quantity_text(Quantity(-path.height, error=number(path.sampling_error)))
        return f"no barrier; the highest point between the ends is {below} below the line that joins them"
    height = quantity_text(Quantity(path.barrier, error=number(path.barrier_error)))
    errors = f"of the samples {plain(number(path.sampling_error), 2)}, of the grid {plain(path.grid_error, 2)}"
    if math.isnan(path.sampling_error):
        errors = f"of the grid {plain(path.grid_error, 2)}, of the samples unknown"
    unsure = ", not to be told from none" if path.barrier < _CLEAR * path.barrier_error else ""
    return f"a barrier of {height} above the line between the ends{unsure}; error {errors}"


def _missing(paths: Mapping[str, Path], nulls: Nulls) -> Iterator[Missing]:
    """Yield what could not be had."""
    for name, one in paths.items():
        yield from (Missing(f"{what}, {name}", why) for what, why in one.missing.items())
    yield from (Missing(f"barrier for comparison: {what}", why) for what, why in nulls.missing.items())


def _figure(paths: Mapping[str, Path], nulls: Nulls, unit: str, *, restated: bool) -> Curves:
    """Return the figure of all paths."""
    curves = []
    for hue, (name, one) in enumerate([*paths.items(), *nulls.paths.items()]):
        label = one.label or name
        curves.append(_curve(label, hue, one, _numbers(one.drawn), dashed=False))
        if one.restated is not None:
            curves.append(_curve(label, hue, one, _numbers(one.losses), dashed=True))
    return Curves(
        key="path",
        title="Loss on straight paths",
        caption="Loss at θ = (1 - t) A + t B.",
        x=Axis("share t of the way"),
        y=Axis("loss", unit),
        curves=tuple(curves),
        styles=("statistics measured anew", "statistics of the first point") if restated else None,
        summary=tuple(_statement(name, one).words for name, one in paths.items()),
        limits=_LIMITS,
    )


def _table(key: str, title: str, paths: Mapping[str, Path], unit: str) -> Table:
    """Return ends, barriers with their errors and lengths."""
    columns = (
        Column("path", "path", words=True),
        Column("first", "loss at the first end", unit),
        Column("second", "at the second", unit),
        Column("barrier", "barrier", unit, "largest height above the line between the ends, ± both errors together"),
        Column("samples", "error of the samples", unit, "standard error over the samples, paired along the path"),
        Column("grid", "error of the grid", unit, "by a parabola through the highest point and its neighbors"),
        Column("distance", "length", "", "in the space of the parameters"),
    )
    rows = [
        (
            name,
            number(one.drawn[0]),
            number(one.drawn[-1]),
            Quantity(number(one.barrier), error=number(one.barrier_error)),
            number(one.sampling_error),
            number(one.grid_error),
            one.distance,
        )
        for name, one in paths.items()
    ]
    return Table(key, title, columns, tuple(rows))


def _curve(name: str, hue: int, path: Path, losses: Numbers, *, dashed: bool) -> Curve:
    """Return the line of a path."""
    return Curve(name, hue, _numbers(path.shares), losses, losses, losses, (None,) * len(losses), 1, dashed=dashed)


def _numbers(values: object) -> Numbers:
    return tuple(number(one) for one in values)  # type: ignore[attr-defined]


def _seconds(paths: Mapping[str, Path]) -> float:
    return sum(one.seconds for one in paths.values())
