"""Planes as a report: contours, points with their own losses, and what the picture cannot show."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from lossscope.reports.content import Column, Quantity, Report, Statement, Table
from lossscope.reports.figure_content import Axis, ContourMark, Contours, Numbers
from lossscope.reports.shared.number_format import plain, quantity_text
from lossscope.reports.shared.quantities import number
from lossscope.reports.surfaces.made import Made

if TYPE_CHECKING:
    from lossscope.landscape.surfaces.pictures import Plane

__all__ = ["PlaneKind", "plane_report"]

PlaneKind = Literal["random", "eigen", "pca", "points"]
_TITLES: Final[dict[PlaneKind, str]] = {
    "random": "Loss on random filter-normalized planes",
    "eigen": "Loss on the plane of two Hessian eigenvectors",
    "pca": "Loss on the plane of principal components",
    "points": "Loss on the plane through three points",
}
_LIMITS: Final[dict[PlaneKind, str]] = {
    "random": "Each plane is one draw. A single one ranks two solutions wrongly one time in four where one is sharper "
    "by a factor of 1.75, and the same function with rescaled neurons has another picture: no two networks can be "
    "ranked by it. A fan (`--plane fan`) does not have the second fault, and shows the spread.",
    "eigen": "The axes are the two sharpest directions: the loss is flatter in nearly all others. Eigenvectors change "
    "with a rescaling of neurons.",
    "pca": "The contours are losses on the plane, where the training never was: a point has the loss that is written "
    "at it, and lies at its distance from the plane.",
    "points": "The contours between the points are losses on the plane, where no training went. Neurons of two "
    "networks may be permuted, so that a barrier need not separate two functions.",
}


def plane_report(plane: Plane, kind: PlaneKind, point: str, made: Made) -> Report:
    """Return a plane, or several random ones, as a report.

    Args:
        plane: The plane.
        kind: Its kind.
        point: Name of the point at the origin.
        made: How the report was made.
    """
    facts = {
        "origin": point,
        "cells": " by ".join(str(one) for one in plane.losses.shape[1:]) + f" on {len(plane.losses)} planes",
        "seconds": plain(plane.seconds, 2),
    }
    return Report(
        kind="surface",
        title=_TITLES[kind],
        subtitle=point,
        findings=(),
        tables=tuple(_tables(plane, made.unit)),
        figures=(_figure(plane, kind, made.unit),),
        notes=(*made.notes, _LIMITS[kind]),
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
    if plane.explained is not None and plane.walk is not None:
        held = f"{100 * sum(plane.explained):.0f} %"
        walk = f"{100 * sum(plane.walk):.0f} %"
        yield Statement(
            f"the plane holds {held} of the variance of the checkpoints; a random walk with the same steps has {walk}"
            + (": the shape of this path says nothing about the loss" if plane.looks_random else ""),
            "look" if plane.looks_random or not plane.holds_marks else "fine",
            "plane",
        )
    if lost := int(np.isnan(plane.losses).sum()):
        yield Statement(
            f"the loss is not finite in {lost} of {plane.losses.size} cells, which are left empty", "act", "plane"
        )


def _edge_rises(plane: Plane) -> npt.NDArray[np.float64]:
    """Return the mean rise of the loss over the edges of each plane; nan if one is lost."""
    inner = np.zeros(plane.losses.shape[1:], dtype=bool)
    inner[1:-1, 1:-1] = True
    found: npt.NDArray[np.float64] = plane.losses[:, ~inner].mean(1) - plane.loss
    return found


def _figure(plane: Plane, kind: PlaneKind, unit: str) -> Contours:
    """Return the contours."""
    marks = tuple(
        ContourMark(one.name, one.x, one.y, f"{place}: {plain(number(one.loss), 3)}")
        for place, one in enumerate(plane.marks, 1)
    )
    joined = plane.walk is not None and plane.holds_marks  # the points of one training
    caption = "Distances in the space of the parameters."
    if marks:
        caption += " Numbers at points are those of the table, with their own losses."
    if plane.walk is not None:
        caption += " " + (
            "The line joins them in the order of training."
            if joined
            else "No line joins them, as the plane holds less than 90 % of their variance."
        )
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
        joined=joined,
        summary=tuple(_in_numbers(plane)),
    )


def _in_numbers(plane: Plane) -> Iterator[str]:
    """Yield the range of each plane as text."""
    for place, one in enumerate(plane.losses, 1):
        there = one[np.isfinite(one)]
        low, high = (number(there.min()), number(there.max())) if len(there) else (None, None)
        yield f"plane {place}: loss from {plain(low, 3)} to {plain(high, 3)}, {plain(plane.loss, 4)} at the origin"


def _tables(plane: Plane, unit: str) -> Iterator[Table]:
    """Yield the table of points, where there are any."""
    if not plane.marks:
        return
    columns = (
        Column("number", "number"),
        Column("point", "point", words=True),
        Column("loss", "its own loss", unit),
        Column("distance", "distance from the plane"),
        Column("x", "first coordinate"),
        Column("y", "second coordinate"),
    )
    rows = tuple(
        (place, one.name, number(one.loss), one.distance, one.x, one.y) for place, one in enumerate(plane.marks, 1)
    )
    yield Table("points", "Points", columns, rows)


def _numbers(values: npt.NDArray[np.float64]) -> Numbers:
    return tuple(number(one) for one in values)
