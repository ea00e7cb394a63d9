"""Rows of the requested measures at the weights that a model has now, and the measures that are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.landscape.measures.estimate_rows import Rows
from lossscope.landscape.measures.options import MeasurementTarget, SolverOptions
from lossscope.landscape.measures.panel import Panel
from lossscope.landscape.reprobe.result import Absent
from lossscope.probes.errors import ProbeError

__all__ = ["measured_rows"]


def measured_rows(
    target: MeasurementTarget,
    effort: SolverOptions,
    chosen: Mapping[str, tuple[str, ...]],
    step: int,
    tell: Callable[[int, str], None],
    *,
    named: bool,
) -> tuple[Rows, list[Absent]]:
    """Return the rows of one checkpoint with their provenance, and its missing measures with their reasons.

    Args:
        target: The loss at the weights of the checkpoint, and what is known of its training.
        effort: Tolerances, budget, seed and engine.
        chosen: Measures by group, from `select_measures`.
        step: Step of the checkpoint.
        tell: Called with the number of groups done and the name of the next one, and at the end.
        named: Whether measures were named, so that those that do not apply are reported.
    """
    panel, rows, absent = Panel(target, effort), Rows(), list[Absent]()
    for count, (group, measures) in enumerate(chosen.items()):
        tell(count, group)
        try:
            rows += GROUPS[group].measure(panel, measures)
        except ProbeError as error:
            absent.append(Absent(step, measures, str(error)))
    tell(len(chosen), "")
    missing = panel.failed | (panel.absent if named else {})
    reasons = dict.fromkeys(missing.values())
    absent += [Absent(step, tuple(n for n, why in missing.items() if why == one), one) for one in reasons]
    return (panel.with_provenance(rows, step) if rows else rows), absent
