"""Evaluations of runs without a number of a measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lossscope.landscape.storage.missing_values import is_curvature, measures_of, missing_values
from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["cut_steps", "missing_evaluations", "missing_in_words"]


def cut_steps(run: Run) -> frozenset[int]:
    """Return the steps of evaluations that the cap on the recording time cut or left out."""
    gaps = filter(is_curvature, missing_values(run.manifest))
    steps = (gap.get("step") for gap in gaps if str(gap.get("why", "")).startswith("overhead:"))
    return frozenset(step for step in steps if isinstance(step, int))


def missing_evaluations(run: Run, measure: str) -> list[int]:
    """Return the steps of evaluations at which a measure of the whole model has no number, ascending.

    These are the evaluations that the manifest lists as missing, and those with an empty row. An entry that names no
    measure stands for all of its evaluation that have no number there.
    """
    rows = run.estimates
    rows = rows[(rows["measure"] == measure) & rows["tensor"].isna()]
    there: set[int] = set()
    missing: set[int] = set()
    for step, value in zip(rows["step"], rows["value"], strict=True):
        (there if number(value) is not None else missing).add(int(step))
    for gap in filter(is_curvature, missing_values(run.manifest)):
        measures, step = measures_of(gap), gap.get("step")
        if isinstance(step, int) and (not measures or measure in measures):
            missing.add(step)
    return sorted(missing - there)


def missing_in_words(runs: Sequence[Run], measures: Iterable[str]) -> str:
    """Return how many evaluations lack a number of one of the measures, and the first of them; "" if none does."""
    wanted = tuple(measures)
    found = [
        (run.name, step) for run in runs for step in sorted({s for m in wanted for s in missing_evaluations(run, m)})
    ]
    if not found:
        return ""
    name, step = found[0]
    return f"missing at {len(found)} more evaluation{'s' * (len(found) > 1)} (first: {name}, step {step})"
