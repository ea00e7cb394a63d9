"""Missing values of a run: what could not be measured, at which steps, and why, as the manifest lists it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from lossscope.reports.shared.quantities import number

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["gaps_of", "is_curvature", "label_of", "missing_evaluations", "missing_in_words"]

_MOST_MEASURES: Final = 3  # named instead of their instrument


def gaps_of(run: Run) -> list[Mapping[str, Any]]:
    """Return the entries of the missing values in the manifest, which live and crashed runs have too."""
    gaps = run.manifest.get("curvature_gaps")
    return [one for one in gaps if isinstance(one, Mapping)] if isinstance(gaps, list) else []


def is_curvature(gap: Mapping[str, Any]) -> bool:
    """Return True for a curvature evaluation; earlier versions recorded no others."""
    return bool(gap.get("instrument", "curvature") == "curvature")


def label_of(gap: Mapping[str, Any]) -> str:
    """Return the measures of a missing value if they are few, else its instrument."""
    measures = _measures(gap)
    return ", ".join(measures) if 0 < len(measures) <= _MOST_MEASURES else str(gap.get("instrument", "curvature"))


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
    for gap in filter(is_curvature, gaps_of(run)):
        measures, step = _measures(gap), gap.get("step")
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


def _measures(gap: Mapping[str, Any]) -> list[str]:
    """Return the names of the measures that an entry is about; empty for all of its instrument."""
    measures = gap.get("measures")
    return [str(one) for one in measures] if isinstance(measures, list) else []
