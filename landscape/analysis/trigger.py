"""Trigger statistics of a run: rate of second gradients, and a sign test against random signs of phi."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lossscope.landscape.analysis.series import step_series
from lossscope.probes.dynamics.trigger_test import (
    PhiAutocorrelation,
    TriggerTest,
    phi_autocorrelation,
    timer_test,
    trigger_test,
)
from lossscope.probes.errors import ProbeError

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["TriggerRecord", "trigger_of"]


@dataclass(frozen=True)
class TriggerRecord:
    """Trigger settings and test of a run; `why` gives the reason when there is no test."""

    mode: str  # "aga", or "timer" for the random timer
    lamda: float
    k: int
    first: int = 0  # step
    last: int = 0
    test: TriggerTest | None = None
    phi: PhiAutocorrelation | None = None
    why: str = ""


def trigger_of(run: Run) -> TriggerRecord | None:
    """Test the trigger of a run from its recorded steps.

    An adaptive trigger is compared with random signs of its own phi at its own thresholds, so the first steps, whose
    thresholds are too small, count as well. The random timer is compared with its nominal probability. A resumed run
    counts as one run; a run recorded from a later step counts from there on.

    Args:
        run: Any run.

    Returns:
        The record; None if the optimizer has no trigger. The record has no test if a step is missing or `synced` was
        not recorded at a step.
    """
    settings = run.manifest.get("trigger")
    if not isinstance(settings, dict):
        return None
    try:
        mode, lamda, k = str(settings["mode"]), float(settings["lambda"]), int(settings["k"])
    except (KeyError, TypeError, ValueError):
        return TriggerRecord("unknown", float("nan"), 0, why="lambda and k are missing from the manifest")
    steps = run.columns("steps", "step")["step"].to_numpy(dtype=np.int64)
    if not len(steps):
        return TriggerRecord(mode, lamda, k, why="no step was recorded")
    synced = step_series(run, "synced").y
    if (np.diff(steps) != 1).any() or np.isnan(synced).any():
        why = "steps or their `synced` values are missing, so the intervals between second gradients are unknown"
        return TriggerRecord(mode, lamda, k, why=why)
    phi, first, last = step_series(run, "phi").y.tolist(), int(steps[0]), int(steps[-1])
    taken = synced.astype(bool).tolist()
    try:
        if mode == "timer":
            found = timer_test(taken, lamda=lamda, k=k)
        else:
            found = trigger_test(taken, phi, step_series(run, "threshold").y.tolist(), k=k)
    except ProbeError as error:
        return TriggerRecord(mode, lamda, k, first, last, why=str(error))
    return TriggerRecord(mode, lamda, k, first, last, found, phi_autocorrelation(phi))
