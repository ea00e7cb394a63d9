"""Rules about curvature: the threshold of stability, negative curvature, and estimates that did not converge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.diagnosis.rule import Rule, Verdict
from lossscope.landscape.analysis.diagnosis.signals import first_above, grows
from lossscope.landscape.analysis.series import Series, probe_series

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["EDGE", "NEGATIVE_MASS", "UNCONVERGED"]

# the first that a run recorded holds for its optimizer
_EDGES: Final = ("preconditioned_edge_ratio", "sharpness_edge_ratio", "directional_edge_ratio")


def _edge(run: Run) -> Verdict | None:
    """Judge the ratio of sharpness to the threshold of the step size."""
    found = ((measure, _known(run, measure)) for measure in _EDGES)
    measure, series = next(((name, one) for name, one in found if len(one.y)), ("", None))
    if series is None:
        return None
    top = int(np.argmax(series.y))
    words = f"{measure} was at most {series.y[top]:.3g} (step {series.x[top]:.0f}) at {len(series.y)} evaluations"
    first = first_above(series.y, series.error)
    if first is None:
        return Verdict("fine", words)
    return Verdict(
        "look", f"{words}, and above 1 beyond its error from step {series.x[first]:.0f} on", int(series.x[first])
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
    series = probe_series(run, measure)
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
    ("sharpness",),
)
