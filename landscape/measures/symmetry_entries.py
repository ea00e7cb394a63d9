"""Entries of the catalogue for the charges of rescaling symmetries, which no loss and no data are needed for.

All are taken on request only. This module imports no torch; the functions that measure import it when they are called.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup, Names, Schedule

if TYPE_CHECKING:
    from lossscope.landscape.measures.panel import Panel
    from lossscope.probes.statistics.estimate import Estimate

__all__ = ["SYMMETRIES"]

_PERMUTATIONS: Final = "permutations of hidden units"


def _charges(panel: Panel, names: Names) -> Mapping[str, Estimate]:
    from lossscope.probes.gauge.charges import symmetry_charges
    from lossscope.probes.statistics.estimate import exact_estimate

    return {"charge_imbalance": exact_estimate(symmetry_charges(panel.objective.model).imbalance)}


def _breaking(panel: Panel, names: Names) -> Mapping[str, Estimate]:
    from lossscope.probes.gauge.charges import symmetry_charges
    from lossscope.probes.statistics.estimate import exact_estimate

    before, moved = panel.step_by_name()
    found = symmetry_charges(panel.objective.model, before=before, displacement=moved)
    return {
        "symmetry_breaking": exact_estimate(found.breaking),
        "charge_drift": exact_estimate(found.drift),
    }


def _breaking_due(evaluation: Evaluation) -> Collection[str]:
    """Return the measures of the step where they were named."""
    return ("symmetry_breaking", "charge_drift") if evaluation.stepped and evaluation.named else ()


SYMMETRIES: Final[tuple[MeasureGroup, ...]] = (
    MeasureGroup(
        "charges",
        (
            Measure(
                "charge_imbalance",
                "1",
                Bound.EXACT,
                _PERMUTATIONS,
                "sum over neurons that can be rescaled of | |w_in|^2 - |w_out|^2 |, over the sum of the squared norms: "
                "0 at the balanced point",
            ),
        ),
        run=_charges,
        cost="no loss",
        reports=("flatness",),
    ),
    MeasureGroup(
        "symmetry_step",
        (
            Measure(
                "symmetry_breaking",
                "1",
                Bound.EXACT,
                _PERMUTATIONS,
                "part of the step that changes the charges in first order: 0 for any step along a gradient, at most 1",
            ),
            Measure(
                "charge_drift",
                "1",
                Bound.EXACT,
                _PERMUTATIONS,
                "change of the charges by the step, over the sum of the squared norms",
            ),
        ),
        run=_breaking,
        recorded=Schedule(8, _breaking_due),
        cost="no loss",
        reports=("flatness",),
        needs_step=True,
    ),
)
