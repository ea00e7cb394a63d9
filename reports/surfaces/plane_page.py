"""Planes as a report: contours, points with their own losses, and what the picture cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from lossscope.landscape.measures.declarations import ROTATIONS
from lossscope.landscape.surfaces.pictures import HELD
from lossscope.reports.content import Column, Quantity, Report, Statement, Table
from lossscope.reports.figure_content import Axis, ContourMark, Contours, Numbers
from lossscope.reports.shared.number_format import plain, quantity_text
from lossscope.reports.shared.quantities import number
from lossscope.reports.surfaces.made import Made

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.pictures import Mark, Plane, Trail

__all__ = ["PlaneKind", "figure", "plane_report"]

PlaneKind = Literal["random", "eigen", "pca", "points"]
_TITLES: Final[dict[PlaneKind, str]] = {
    "random": "Loss on random filter-normalized planes",
    "eigen": "Loss on the plane of two Hessian eigenvectors",
    "pca": "Loss on the plane of principal components",
    "points": "Loss on the plane through three points",
}
_LIMITS: Final[dict[PlaneKind, tuple[str, ...]]] = {
    "random": (
        "Each plane is one draw: a single one ranks two solutions wrongly 1 time in 4 where one is 1.75 times sharper, "
        "and 1 in 2 where they are equal.",
        "The same function with rescaled neurons has another picture: rank no two networks by it.",
    ),
    "eigen": (
        "The two sharpest directions: the loss is flatter in nearly all others.",
        f"Invariant under {ROTATIONS}: rescaled neurons of the same function have another picture.",
    ),
    "pca": (
        "Colors are losses on the plane, where the training never was: points have their own.",
        "Random walks draw such arcs, too.",
    ),
    "points": (
        "Between the points are losses on the plane, where no training went.",
        "Neurons of two networks may be permuted: a barrier need not separate two functions.",
    ),
}
_MEASURED: Final = (
    "How wrong one random filter-normalized slice is was measured on the digits network at training loss 0.02 with 10 "
    "seeds an arm: where the noise-averaged sharpness of SAM is 0.57 of that without ascent, SAM looks flatter in 72 "
    "to 74 % of pairs of slices; where it is equal (0.93 to 1.01), the one looks flatter in 29 to 50 %, by the radius. "
    "Rescaling the neurons of one function by e^N(0, 1) moved the rise at radius 0.25 from 0.083 to 4.0; that of a fan "
    "stayed. See docs/howto/draw_a_landscape.md."
)
_JOINED: Final = {
    True: "A line joins checkpoints in the order of training where the plane holds 90 % of their variance.",
    False: "No line joins the checkpoints, as the plane holds less than 90 % of their variance.",
}
_IN_A_PLANE: Final = 3  # points that always lie in one
_WHOLE: Final = 0.995  # share that is 100 %
_LETTER, _LINE = 0.016, 0.05  # sizes of labels, of the side of a picture


def plane_report(plane: Plane, kind: PlaneKind, point: str, made: Made, *, raised: bool = False) -> Report:
    """Return a plane, or several random ones, as a report.

    Args:
        plane: The plane.
        kind: Its kind.
        point: Name of the point at the origin.
        made: How the report was made.
        raised: True for a surface with the loss as height in place of contours.
    """
    facts = {
        "origin": point,
        "cells": " by ".join(str(one) for one in plane.losses.shape[1:]) + f" on {len(plane.losses)} planes",
        "points evaluated": plane.evaluated,
        "seconds": plain(plane.seconds, 2),
    }
    shown = figure(plane, kind, made.unit, raised=raised)
    return Report(
        kind="surface",
        title=_TITLES[kind],
        subtitle=point,
        findings=(),
        tables=tuple(_tables(plane, made.unit)),
        figures=(shown,),
        notes=(*made.notes, *shown.limits, *((_MEASURED,) if kind == "random" else ())),
        missing=(),
        provenance=made.table(facts),
        summary=tuple(_statements(plane, kind, point)),
    )


def _statements(plane: Plane, kind: PlaneKind, point: str) -> Iterator[Statement]:
    """Yield what the planes show, in words."""
    rises = _edge_rises(plane)
    if kind == "random":
        found = Quantity(number(np.mean(rises)), low=number(rises.min()), high=number(rises.max()))
        yield Statement(
            f"{point}: at a distance of {plain(float(plane.x[-1]), 3)} the loss has risen by {quantity_text(found)} on "
            f"average over the edges (smallest and largest of {len(rises)} planes)",
            "fine",
            "plane",
        )
    else:
        lowest = float(np.nanmin(plane.losses)) if np.isfinite(plane.losses).any() else math.nan
        yield Statement(
            f"{point}: the loss is {plain(number(plane.loss), 4)} at the origin, and {plain(number(lowest), 4)} at the "
            "lowest cell of the plane",
            "fine" if lowest >= plane.loss else "look",
            "plane",
        )
    yield from _shares(plane)
    yield from _followed(plane)
    if lost := int(np.isnan(plane.losses).sum()):
        yield Statement(
            f"the loss is not finite in {lost} of {plane.losses.size} cells, which are left empty", "act", "plane"
        )


def _shares(plane: Plane) -> Iterator[Statement]:
    """Yield the shares of the variance beside those of a random walk."""
    if plane.explained is None or plane.walk is None:
        return
    if len(plane.marks) == _IN_A_PLANE:
        yield Statement("three checkpoints lie in a plane whatever the training did: take more", "look", "plane")
        return
    held = f"{100 * sum(plane.explained):.0f} %"
    walk = f"{100 * sum(plane.walk):.0f} %"
    yield Statement(
        f"the plane holds {held} of the variance of the checkpoints; a random walk with the same steps has {walk}"
        + (": the shape of this path says nothing about the loss" if plane.looks_random else ""),
        "look" if plane.looks_random or sum(plane.explained) < HELD else "fine",
        "plane",
    )


def _followed(plane: Plane) -> Iterator[Statement]:
    """Yield for each training how far it is from the planes."""
    if len({one.name for one in plane.trails}) > 1:
        names = ", ".join(dict.fromkeys(one.name for one in plane.trails))
        yield Statement(f"{names} share this picture: one architecture, one loss", "fine", "plane")
    for name in dict.fromkeys(one.name for one in plane.trails):
        trails = [one for one in plane.trails if one.name == name]
        held = min(one.held for one in trails)
        away = max(mark.distance for one in trails for mark in one.marks)
        share = f"{_least(trails)}{plain(100 * held, 2 if held < _WHOLE else 3)} %"
        yield Statement(
            f"{name}: {share} of the variance of its {len(trails[0].marks)} checkpoints "
            f"lies along the plane, and they are up to {plain(away, 3)} away from it: "
            + ("a line joins them" if held >= HELD else "they are points without a line"),
            "fine" if held >= HELD else "look",
            "plane",
        )


def _least(trails: Sequence[Trail]) -> str:
    """Return words before the smallest of several numbers."""
    return "at least " if len(trails) > 1 else ""


def _edge_rises(plane: Plane) -> npt.NDArray[np.float64]:
    """Return the mean rise of the loss over the edges of each plane; nan if one is lost."""
    inner = np.zeros(plane.losses.shape[1:], dtype=bool)
    inner[1:-1, 1:-1] = True
    found: npt.NDArray[np.float64] = plane.losses[:, ~inner].mean(1) - plane.loss
    return found


def figure(plane: Plane, kind: PlaneKind, unit: str, *, raised: bool = False) -> Contours:
    """Return the contours, or the surfaces.

    Args:
        plane: The plane.
        kind: Its kind.
        unit: Unit of the loss.
        raised: True for surfaces.
    """
    marks, lines = _marks(plane)
    beyond = sum(not _is_inside(plane, one) for one in marks)
    caption = "Distances in the space of the parameters."
    if marks:
        caption += " Points have the numbers of the table, and their own losses in words and in color."
    if plane.trails:
        caption += " " + _JOINED[bool(lines)]
    caption += f" {beyond} points lie outside of the picture." * bool(beyond)
    caption += " Cells whose loss is not finite are left empty." * bool(np.isnan(plane.losses).any())
    return Contours(
        key="plane",
        title=_TITLES[kind],
        caption=caption,
        x=Axis(plane.axes[0], ""),
        y=Axis(plane.axes[1], ""),
        color=Axis("loss", unit),
        columns=_numbers(plane.x),
        rows=_numbers(plane.y),
        panels=tuple(tuple(_numbers(row) for row in one) for one in plane.losses),
        marks=marks,
        lines=lines,
        raised=raised,
        summary=tuple(_in_numbers(plane)),
        limits=tuple(_limits(plane, kind)),
    )


def _limits(plane: Plane, kind: PlaneKind) -> Iterator[str]:
    """Yield what the picture cannot show, and what its points are."""
    if plane.explained is not None and plane.walk is not None:
        shares = (f"{100 * sum(one):.0f} %" for one in (plane.walk, plane.explained))
        yield _LIMITS[kind][0]
        yield "Random walks draw such arcs, too: they have {} of their variance here, this training {}.".format(*shares)
    else:
        yield from _LIMITS[kind]
    if plane.marks or plane.trails:
        yield "Points: number in the table, and own loss; the smaller, the further from the plane."


def _marks(plane: Plane) -> tuple[tuple[ContourMark, ...], tuple[tuple[int, ...], ...]]:
    """Return the points of a picture in the order of the table, and the lines through them."""
    several = len(plane.losses) > 1
    every: list[tuple[int | None, Mark]] = [(None, one) for one in _named(plane)]
    lines, place = [], len(every)
    for trail in plane.trails:
        every += [(trail.plane if several else None, one) for one in trail.marks]
        lines += [tuple(range(place, len(every)))] if trail.is_held else []
        place = len(every)
    labels = _labels(plane, every)
    marks = tuple(
        ContourMark(one.name, one.x, one.y, labels.get(row, ""), number(one.loss), one.distance, panel)
        for row, (panel, one) in enumerate(every)
    )
    return marks, tuple(lines)


def _labels(plane: Plane, marks: Sequence[tuple[int | None, Mark]]) -> dict[int, str]:
    """Return words beside points by their places, such that none covers another; the last of each training first."""
    side = max(plane.x[-1] - plane.x[0], plane.y[-1] - plane.y[0]) * len(plane.losses)
    several = len({one.name for one in plane.trails}) > 1
    runs = {one.marks[-1]: f", {one.name}" for one in plane.trails if several}
    first = {*runs, *(one.marks[-1] for one in plane.trails), *_named(plane)}
    found: dict[int, str] = {}
    for place in sorted(reversed(range(len(marks))), key=lambda place: marks[place][1] not in first):
        panel, one = marks[place]
        others = [(marks[k][1], words) for k, words in found.items() if marks[k][0] == panel]
        short = f"{place + 1}: {plain(number(one.loss), 3)}"
        for words in (f"{short}{runs.get(one, '')}", short, str(place + 1)):
            if one not in first and words != short:  # the others have their loss or nothing
                continue
            if all(_is_apart(one, other, len(words) + len(theirs), side) for other, theirs in others):
                found[place] = words
                break
    return found


def _is_apart(one: Mark, other: Mark, letters: int, side: float) -> bool:
    """Return True if words beside two points, of so many letters together, do not cover each other."""
    return abs(one.x - other.x) > _LETTER * letters * side or abs(one.y - other.y) > _LINE * side


def _named(plane: Plane) -> tuple[Mark, ...]:
    """Return the points that are no checkpoints of a training on the plane."""
    followed = {mark.name for trail in plane.trails for mark in trail.marks}
    return tuple(one for one in plane.marks if one.name not in followed)


def _is_inside(plane: Plane, mark: ContourMark) -> bool:
    """Return True if a point lies within the edges of the picture."""
    return all(min(side) <= at <= max(side) for side, at in ((plane.x, mark.x), (plane.y, mark.y)))


def _in_numbers(plane: Plane) -> Iterator[str]:
    """Yield the range of each plane as text."""
    for place, one in enumerate(plane.losses, 1):
        there = one[np.isfinite(one)]
        low, high = (number(there.min()), number(there.max())) if len(there) else (None, None)
        yield f"plane {place}: loss from {plain(low, 3)} to {plain(high, 3)}, {plain(plane.loss, 4)} at the origin"


def _tables(plane: Plane, unit: str) -> Iterator[Table]:
    """Yield the table of points, where there are any, and that of trainings."""
    rows: list[tuple[int | None, Mark]] = [(None, one) for one in _named(plane)]
    rows += [(trail.plane + 1, one) for trail in plane.trails for one in trail.marks]
    if not rows:
        return
    columns = (
        Column("number", "number"),
        Column("point", "point", words=True),
        Column("plane", "plane", "", "– for all"),
        Column("loss", "its own loss", unit),
        Column("distance", "distance from the plane"),
        Column("x", "first coordinate"),
        Column("y", "second coordinate"),
    )
    cells = tuple(
        (place, one.name, on, number(one.loss), one.distance, one.x, one.y) for place, (on, one) in enumerate(rows, 1)
    )
    yield Table("points", "Points", columns, cells)
    if plane.trails:
        shares = (
            Column("run", "run", words=True),
            Column("plane", "plane"),
            Column("held", "share of the variance", "1", "of its checkpoints, along the axes of the plane"),
            Column("line", "drawn as", words=True),
        )
        held = tuple((one.name, one.plane + 1, one.held, "line" if one.is_held else "points") for one in plane.trails)
        yield Table("trainings", "Trainings on the plane", shares, held)


def _numbers(values: npt.NDArray[np.float64]) -> Numbers:
    return tuple(number(one) for one in values)
