"""Figure of spectral densities, from recorded Gauss quadratures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.landscape.analysis.density import Density, SignedLog, last_density
from lossscope.landscape.analysis.series import FloatArray
from lossscope.reports.figure_content import Axis, Spectra, Spectrum, drawn
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.notes import HESSIAN_NOTE
from lossscope.reports.shared.number_format import plain
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["LEAST_WIDTH", "common_axis", "density_figure", "density_in_words", "drawable"]

_LINEAR_SHARE: Final = 1e-2  # the axis is linear below this share of the largest absolute eigenvalue
LEAST_WIDTH: Final = 0.12  # decades, smallest kernel width of a node
_POINTS: Final = 400
_LEAST: Final = 0.3  # eigenvalues per decade at the lower end of the axis
_CAPTION: Final = (
    "Number of Hessian eigenvalues per decade of the axis, from Gauss quadrature over random vectors; bands are two "
    "standard errors over the vectors. Each tick is one isolated eigenvalue, which the curve excludes. Nodes are "
    f"smoothed over at least {LEAST_WIDTH} decades. First run of each arm with a density, at its last measurement."
)


def density_figure(runs: Sequence[Run]) -> Spectra:
    """Return the last density of the first run with one, for each arm."""
    found = [(hue, arm, _first(members)) for hue, (arm, members) in enumerate(by_arm(runs).items())]
    drawn = [(hue, *one) for hue, _, one in found if one is not None]
    axis, places = common_axis([density for _, _, density in drawn])
    spectra = tuple(_spectrum(hue, run.name, density, axis, places) for hue, run, density in drawn)
    unit = loss_unit(runs)
    most = max([value for one in spectra for value in one.high if value is not None], default=1.0)
    return Spectra(
        key="density",
        title="Spectral density of the Hessian",
        caption=f"{_CAPTION} {HESSIAN_NOTE}",
        x=Axis("eigenvalue", unit, "symlog", axis.threshold, 1.0, _limits(axis, places)),
        y=Axis("eigenvalues per decade", scale="log", limits=(_LEAST, 3 * max(most, 1.0))),
        spectra=spectra,
        absent=tuple(arm for _, arm, one in found if one is None),
        summary=tuple(density_in_words(run.name, density, unit) for _, run, density in drawn),
    )


def _first(runs: Sequence[Run]) -> tuple[Run, Density] | None:
    """Return the first run with a density that can be drawn, and that density."""
    found = ((run, last_density(run)) for run in runs)
    return next(((run, one) for run, one in found if one is not None and drawable(one)), None)


def drawable(density: Density) -> bool:
    """Return True if every node and every number of eigenvalues has a size that a figure draws."""
    return all(map(drawn, (*density.nodes.tolist(), *density.masses.tolist())))


def common_axis(densities: Sequence[Density]) -> tuple[SignedLog, FloatArray]:
    """Return an axis that contains all densities, and the positions at which they are drawn."""
    ends = [(float(density.nodes[0]), float(density.nodes[-1])) for density in densities] or [(-1.0, 1.0)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    axis = SignedLog(_LINEAR_SHARE * max(abs(low), abs(high)) or 1.0)
    first, last = axis.place(np.array([min(low, 0.0), max(high, 0.0)]))
    return axis, np.linspace(first - 4 * LEAST_WIDTH, last + 4 * LEAST_WIDTH, _POINTS)


def _limits(axis: SignedLog, places: FloatArray) -> tuple[float, float]:
    """Return the limits of the axis."""
    low, high = axis.value(places[[0, -1]])
    return float(low), float(high)


def _spectrum(hue: int, name: str, density: Density, axis: SignedLog, places: FloatArray) -> Spectrum:
    """Return a density as figure data."""
    per_decade, error = density.bulk(axis, places, LEAST_WIDTH)
    return Spectrum(
        name=name,
        hue=hue,
        x=_numbers(axis.value(places)),
        number=_numbers(np.where(per_decade > 0, per_decade, np.nan)),
        low=_numbers(np.maximum(per_decade - 2 * error, _LEAST / 10)),
        high=_numbers(per_decade + 2 * error),
        single=_numbers(density.nodes[density.settled]),
    )


def density_in_words(name: str, density: Density, unit: str, zone: float | None = None) -> str:
    """Return the density as text: its extent, isolated eigenvalues, and the shares near and below zero.

    Args:
        name: Name of the run.
        density: The density.
        unit: Unit of the eigenvalues.
        zone: Largest size of an eigenvalue near zero; by default a share of the largest of this density.
    """
    single = density.nodes[density.settled]
    zone = _LINEAR_SHARE * float(np.abs(density.nodes).max()) if zone is None else zone
    below = 100 * float(density.masses[density.nodes < -zone].sum()) / density.size
    within = 100 * float(density.masses[np.abs(density.nodes) <= zone].sum()) / density.size
    isolated = f"{len(single)} isolated" + (f" up to {plain(float(single.max()), 3)}" if len(single) else "")
    return (
        f"{name}: {density.size} eigenvalues from {plain(float(density.nodes[0]), 3)} to "
        f"{plain(float(density.nodes[-1]), 3)}{unit and f' {unit}'} at step {density.step}; {isolated}; "
        f"{plain(within, 3)} % within ±{plain(zone, 2)}, {plain(below, 2)} % below"
    )


def _numbers(values: FloatArray) -> tuple[float | None, ...]:
    """Return an array as floats, nan as None."""
    return tuple(number(value) for value in values)
