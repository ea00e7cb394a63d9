"""Rules about curvature: the threshold of stability, negative curvature, and estimates that did not converge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.diagnosis.rule import Rule, Verdict
from lossscope.landscape.analysis.diagnosis.signals import first_above, grows
from lossscope.landscape.analysis.edge_of_stability import edge_ratio
from lossscope.landscape.analysis.series import Series, probe_series

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["EDGE", "NEGATIVE_MASS", "UNCONVERGED", "edge_of"]

_ANY_STEP: Final = "directional_edge_ratio"  # holds for every optimizer and batch size


def edge_of(run: Run) -> tuple[str, Series] | None:
    """Return the measure that is compared with the edge of stability of a run, and its ratio to it, 1 at the edge.

    It is the sharpness whose threshold holds for the run, or else the directional edge ratio of its steps; None if
    neither is known.
    """
    found = edge_ratio(run)
    measure, series = found if found is not None else (_ANY_STEP, probe_series(run, _ANY_STEP))
    return (measure, series) if np.isfinite(series.y).any() else None


def _edge(run: Run) -> Verdict | None:
    """Judge the ratio of sharpness to the threshold of the step size."""
    found = edge_of(run)
    if found is None:
        return None
    measure, series = found[0], _finite(found[1])
    top = int(np.argmax(series.y))
    share = measure.replace("_", " ") + ("" if measure == _ANY_STEP else " over its threshold")
    words = f"{share} was at most {series.y[top]:.3g} (step {series.x[top]:.0f}) at {len(series.y)} evaluations"
    first = first_above(series.y, series.error)
    if first is None:
        return Verdict("fine", words)
    return Verdict(
        "look", f"{words}, and above 1 beyond its error first at step {series.x[first]:.0f}", int(series.x[first])
    )


def _negative_mass(run: Run) -> Verdict | None:
    """Judge the share of negative curvature over the run."""
    series = _known(run, "negative_mass")
    if len(series.y) < 2:
        return None
    words = f"negative mass {series.y[0]:.2g} at step {series.x[0]:.0f}, {series.y[-1]:.2g} at step {series.x[-1]:.0f}"
    return Verdict("look" if grows(series.y, series.error) else "fine", words)


def _unconverged(run: Run) -> Verdict | None:
    """Judge the accuracy of the largest eigenvalue."""
    rows = run.estimates
    rows = rows[(rows["measure"] == "lambda_max") & rows["tensor"].isna()]
    rows = rows[rows["value"].notna()].dropna(subset=["converged"])
    if not len(rows):
        return None
    met = rows["converged"].astype(bool)
    words = f"λ_max met its accuracy at {int(met.sum())} of {len(rows)} evaluations"
    return Verdict(
        "fine" if bool(met.iloc[-1]) else "look", words if bool(met.iloc[-1]) else f"{words}, not at the last"
    )


def _known(run: Run, measure: str) -> Series:
    """Return the known values of a measure."""
    return _finite(probe_series(run, measure))


def _finite(series: Series) -> Series:
    """Return the finite values of a series."""
    known = np.isfinite(series.y)
    return Series(series.run, series.x[known], series.y[known], series.error[known])


EDGE: Final = Rule(
    "edge",
    "Was the run above its threshold of stability?",
    _edge,
    "a ratio of 0.95 whose 95 % interval has a half width of 5 %, at twenty evaluations in 1000 steps",
    0.01,
    "Full-batch training may stay near 1; where the loss rises too, lower the learning rate.",
    ("sharpness",),
)
NEGATIVE_MASS: Final = Rule(
    "negative_mass",
    "Does negative curvature grow?",
    _negative_mass,
    "twenty evaluations in 1000 steps, exchangeable",
    0.01,
    "Growing negative curvature late in training means a saddle: follow λ_min, and check the learning rate.",
    ("sharpness",),
)
UNCONVERGED: Final = Rule(
    "unconverged",
    "Did the eigenvalues reach their accuracy?",
    _unconverged,
    "a bound that is stated: no random number",
    0.0,
    "Raise overhead= or the number of products; until then the error in the table holds.",
    ("sharpness", "flatness"),
)
