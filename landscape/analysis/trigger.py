"""What the trigger of second gradients did in a run, held against one that sees noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.series import step_series
from lossscope.probes.dynamics.trigger_test import PhiMemory, TriggerTest, noise_chances, phi_memory, trigger_test
from lossscope.probes.errors import ProbeError

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["TriggerRecord", "trigger_of"]

_MOST_DRAWN: Final = 10_000_000  # runs in all draws of a bootstrap together: memory and seconds
_FEWEST_DRAWS: Final = 200


@dataclass(frozen=True)
class TriggerRecord:
    """The trigger of a run; `why` says why there is no audit."""

    mode: str  # "aga", or "timer" for the one that draws lots
    lamda: float
    k: int
    first: int = 0  # step
    last: int = 0
    audit: TriggerTest | None = None
    phi: PhiMemory | None = None
    why: str = ""


def trigger_of(run: Run, *, draws: int = 2000) -> TriggerRecord | None:
    """What the trigger of a run did, from its steps.

    An adaptive trigger is held against noise of the sizes of its own phi and against its own thresholds, so that the
    first steps, whose thresholds are too small, count as well. The random timer is held against its own chance. A run
    that was resumed counts as one, and one that was recorded from a later step from there on.

    Args:
        run: any run.
        draws: of the bootstrap over the intervals between second gradients.

    Returns:
        The record; None where the optimizer has no trigger. It has no audit where a step is missing or does not say
        whether it took a second gradient.
    """
    settings = run.manifest.get("trigger")
    if not isinstance(settings, dict):
        return None
    try:
        mode, lamda, k = str(settings["mode"]), float(settings["lambda"]), int(settings["k"])
    except (KeyError, TypeError, ValueError):
        return TriggerRecord("unknown", float("nan"), 0, why="the manifest does not tell its lambda and k")
    steps = run.steps["step"].to_numpy(dtype=np.int64)
    if not len(steps):
        return TriggerRecord(mode, lamda, k, why="no step was recorded")
    synced = step_series(run, "synced").y
    if (np.diff(steps) != 1).any() or np.isnan(synced).any():
        why = "steps are missing, or do not say whether they took a second gradient: runs between two cannot be counted"
        return TriggerRecord(mode, lamda, k, why=why)
    phi, first, last = step_series(run, "phi").y, int(steps[0]), int(steps[-1])
    draws = min(draws, max(_FEWEST_DRAWS, _MOST_DRAWN // max(int(synced.sum()), 1)))  # a long run needs fewer
    try:
        chances = None if mode == "timer" else noise_chances(phi.tolist(), step_series(run, "threshold").y.tolist())
        audit = trigger_test(synced.astype(bool).tolist(), lamda=lamda, k=k, chances=chances, draws=draws)
    except ProbeError as error:
        return TriggerRecord(mode, lamda, k, first, last, why=str(error))
    return TriggerRecord(mode, lamda, k, first, last, audit, phi_memory(phi.tolist()))
