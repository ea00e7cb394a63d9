"""Heat maps of the spectral density over the run: eigenvalues by evaluation, one scale for every arm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.density import Density, SignedLog, densities
from lossscope.landscape.analysis.series import FloatArray
from lossscope.reports.figure_content import Axis, HeatMap, HeatPanel
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.notes import HESSIAN_NOTE
from lossscope.reports.shared.number_format import percent, plain
from lossscope.reports.sharpness.density_figure import LEAST_WIDTH, common_axis, density_in_words, drawable

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["density_maps"]

_ARMS: Final = 4  # arms with a figure
_ROWS: Final = 20
_COLUMNS: Final = 40
_LINES: Final = 6  # evaluations in the summary
_FEWEST: Final = 0.5  # eigenvalues; a cell with fewer is empty
_MANY: Final = 10.0  # eigenvalues, from which on the error of a cell is told
_CAPTION: Final = (
    "Number of Hessian eigenvalues in each cell, from Gauss quadrature over random vectors; isolated eigenvalues count "
    "one each. Rows are equally high on an axis that is linear within ±{linear} and logarithmic beyond, and are named "
    "after their middle. One axis and one scale of colors, 1 to {most}, for every arm. Cells with less than half an "
    "eigenvalue are empty. {error}First run of the arm with two densities: {run}."
)


@dataclass(frozen=True)
class _Grid:
    """The axis that the maps of a report share."""

    axis: SignedLog
    edges: FloatArray  # (rows + 1,) ascending positions; zero is the middle of a row

    @property
    def middles(self) -> FloatArray:
        """Eigenvalue in the middle of each row."""
        found = self.axis.value((self.edges[:-1] + self.edges[1:]) / 2)
        return np.where(np.abs(found) < 1e-9 * self.axis.threshold, 0.0, found)


def density_maps(runs: Sequence[Run]) -> tuple[HeatMap, ...]:
    """Return a heat map for each of the first arms with a run that measured at least two densities.

    Args:
        runs: Any runs; grouped by arm.
    """
    found = [(arm, one) for arm, members in by_arm(runs).items() if (one := _first(members)) is not None][:_ARMS]
    if not found:
        return ()
    grid = _grid([density for _, (_, some) in found for density in some])
    counted = [[one.counts(grid.axis, grid.edges, LEAST_WIDTH) for one in some] for _, (_, some) in found]
    most = max(float(number.max()) for some in counted for number, _ in some)
    limits = (1.0, 10.0 ** math.ceil(math.log10(max(most, 10.0))))
    return tuple(
        _map(place, arm, run, some, counts, grid, limits, loss_unit(runs))
        for place, ((arm, (run, some)), counts) in enumerate(zip(found, counted, strict=True), start=1)
    )


def _first(runs: Sequence[Run]) -> tuple[Run, list[Density]] | None:
    """Return the first run with at least two densities that can be drawn, and some of them with both ends."""
    for run in runs:
        found = [one for one in densities(run) if drawable(one)]
        if len(found) > 1:
            return run, _some(found, _COLUMNS)
    return None


def _grid(found: Sequence[Density]) -> _Grid:
    """Return equally high rows that contain all densities."""
    axis, places = common_axis(found)
    first, last = float(places[0]), float(places[-1])
    height = (last - first) / (_ROWS - 1)
    ends = math.floor(first / height + 0.5), math.ceil(last / height + 0.5)
    edges = np.asarray(height * (np.arange(ends[0], ends[1] + 1) - 0.5), dtype=np.float64)
    return _Grid(axis, edges)


def _map(
    place: int,
    arm: str,
    run: Run,
    some: Sequence[Density],
    counts: Sequence[tuple[FloatArray, FloatArray]],
    grid: _Grid,
    limits: tuple[float, float],
    unit: str,
) -> HeatMap:
    """Return the heat map of an arm."""
    rows = np.stack([number for number, _ in counts], 1)[::-1]  # the largest eigenvalue is on top
    linear, most = plain(grid.axis.threshold, 2), plain(limits[1], 2)
    caption = _CAPTION.format(linear=linear, most=most, error=_error(counts), run=run.name)
    return HeatMap(
        key="density_map" if place == 1 else f"density_map_{place}",
        title=f"Spectral density of the Hessian over the run: {arm}",
        caption=f"{caption} {HESSIAN_NOTE}",
        x=Axis("optimizer step"),
        color=Axis("eigenvalues", scale="log", limits=limits),
        columns=tuple(float(one.step) for one in some),
        rows=tuple(plain(value, 2) for value in grid.middles[::-1].tolist()),
        panels=(
            HeatPanel(
                f"eigenvalue ({unit})" if unit else "eigenvalue",
                tuple(tuple(value if value >= _FEWEST else None for value in row) for row in rows.tolist()),
            ),
        ),
        summary=tuple(density_in_words(run.name, one, unit, grid.axis.threshold) for one in _some(some, _LINES)),
    )


def _error(counts: Sequence[tuple[FloatArray, FloatArray]]) -> str:
    """Return the median relative standard error of the cells with many eigenvalues as a sentence; "" without any."""
    shares = np.concatenate([error[number >= _MANY] / number[number >= _MANY] for number, error in counts])
    if not len(shares):
        return ""
    middle = percent(float(np.median(shares)))
    return f"Standard error of cells with {_MANY:.0f} or more, over the vectors: {middle} (median). "


def _some(found: Sequence[Density], most: int) -> list[Density]:
    """Return equally spaced densities with both ends, or all of a few."""
    places = np.linspace(0, len(found) - 1, min(len(found), most)).round().astype(int)
    return [found[place] for place in dict.fromkeys(places.tolist())]
