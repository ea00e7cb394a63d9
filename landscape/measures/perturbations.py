"""Rows of sharpness by perturbations of single minibatches, of the size that training uses if they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from lossscope.landscape.measures.estimate_rows import Rows, estimate_row
from lossscope.landscape.measures.panel import Panel
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.sam import sam_sharpness
from lossscope.probes.sharpness.worst_case import BallNorm, worst_case_sharpness
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["sam_rows", "worst_case_rows"]

_RADII: Final[dict[str, tuple[BallNorm, float]]] = {"worst_case_l2": ("l2", 0.5), "worst_case_linf": ("linf", 0.002)}
_STEPS: Final = {"sam_sharpness": (0.05, False), "adaptive_sam_sharpness": (0.5, True)}  # as their sources have them


def worst_case_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure worst-case sharpness."""

    def measured(name: str, minibatches: Objective) -> Estimate:
        norm, rho = _RADII[name]
        return worst_case_sharpness(minibatches, rho=rho, norm=norm, seed=panel.options.seed).sharpness

    return _rows(panel, [name for name in _RADII if name in names], measured)


def sam_rows(panel: Panel, names: frozenset[str]) -> Rows:
    """Measure the rise after the ascent step of SAM."""

    def measured(name: str, minibatches: Objective) -> Estimate:
        rho, relative = _STEPS[name]
        return sam_sharpness(minibatches, rho=rho, relative=relative).sharpness

    return _rows(panel, [name for name in _STEPS if name in names], measured)


def _rows(panel: Panel, names: Sequence[str], measured: Callable[[str, Objective], Estimate]) -> Rows:
    """Return the rows of measures on minibatches with their provenance; one that is missing leaves the others."""
    minibatches, rows = panel.target.minibatches or panel.objective, Rows()
    for name in names:
        try:
            found = measured(name, minibatches)
        except ProbeError as error:
            panel.failed[name] = str(error)
            continue
        provenance = {"data_hash": minibatches.data_hash, "additivity": minibatches.additivity}
        rows.probes.append({**estimate_row(name, found), **provenance})
    return rows
