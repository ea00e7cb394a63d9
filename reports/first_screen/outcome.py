"""Outcome of training: finished, running, crashed or diverged, and the loss from start to end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lossscope.landscape.analysis.divergence import divergence_of
from lossscope.landscape.analysis.series import FloatArray, probe_series
from lossscope.reports.content import Quantity, Statement
from lossscope.reports.first_screen.arms import joined_arms, measured, of_arm, spread
from lossscope.reports.shared.divergence import in_words
from lossscope.reports.shared.loss_unit import loss_unit
from lossscope.reports.shared.provenance import listed
from lossscope.reports.shared.reasons import in_plain_words

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["outcome"]


def outcome(runs: Sequence[Run]) -> tuple[Statement, ...]:
    """Return the statements on how the runs ended and on their loss."""
    diverged = [(run.name, found) for run in runs if (found := divergence_of(run)) is not None]
    lost = {name for name, _ in diverged}
    ended = [run for run in runs if run.status not in ("finished", "running") and run.name not in lost]
    running = [run for run in runs if run.status == "running"]
    told = list[Statement]()
    if diverged:
        name, one = diverged[0]
        count = f"{len(diverged)} of {len(runs)} runs diverged, first {name}" if len(runs) > 1 else "The run diverged"
        told.append(Statement(f"{count}: {in_words(one)}.", "act", "loss"))
    if ended:
        words = in_plain_words(ended[0].ends.rstrip("."))
        head = "The run did not finish"
        if len(runs) > 1:
            head = f"{len(ended)} of {len(runs)} runs did not finish ({listed([run.name for run in ended])})"
        told.append(Statement(f"{head}: {words}.", "act", "loss"))
    if running:
        count = f"{len(running)} of {len(runs)} runs are" if len(runs) > 1 else "The run is"
        told.append(Statement(f"{count} still running, at step {max(map(_last_step, running))}.", "fine", "loss"))
    finished = not (diverged or ended or running)
    return (*told, *_loss(runs, lost, finished=finished))


def _loss(runs: Sequence[Run], lost: Collection[str], *, finished: bool) -> tuple[Statement, ...]:
    """Return the statement on the loss from the first evaluation to the last, or from the first batch to the last.

    The loss of runs that diverged is not told: its last finite value may be that of an evaluation long before.
    """
    steps = sorted({_last_step(run) for run in runs})
    one = f"{steps[0]} step{'' if steps[0] == 1 else 's'}" if steps else "no step"
    taken = (f"{steps[0]} to {steps[-1]} steps" if len(steps) > 1 else one) + _planned(runs)
    every = "The run finished" if len(runs) == 1 else f"All {len(runs)} runs finished"
    head = f"{every} after {taken}" if finished else f"{taken[:1].upper()}{taken[1:]} were taken"
    is_measured = all(run.is_measured for run in runs)
    if is_measured:
        head = _checkpoints(runs)
    runs = [run for run in runs if run.name not in lost]
    if not runs:
        return (Statement(f"{head}.", "look", "loss"),)
    of_all_data = any(len(_evaluated(run)) for run in runs)
    ends = of_arm(runs, lambda run: _end(run, of_all_data, 0)), of_arm(runs, lambda run: _end(run, of_all_data, -1))
    if is_measured and not any(ends):
        return (Statement(f"{head}, without a loss.", "fine"),)
    if not ends[0] or not ends[1]:
        return (Statement(f"{head}; no loss was recorded.", "look"),)
    unit, what = loss_unit(runs), "training loss" if of_all_data else "loss on the batch"
    what = "loss on the data of the measurement" if is_measured else what
    phrases = {
        arm: f"{measured(spread(first))} to {measured(spread(ends[1][arm]))}"
        for arm, first in ends[0].items()
        if arm in ends[1]
    }
    return (Statement(f"{head}; the {what} went from {joined_arms(phrases, unit)}.", "fine", "loss"),)


def _checkpoints(runs: Sequence[Run]) -> str:
    """Return how many checkpoints were measured, and the steps of the first and the last."""
    steps = [int(step) for run in runs for step in run.columns("steps", "step")["step"]]
    steps = steps or [int(step) for run in runs for step in run.probes["step"].unique()]
    if not steps:
        return "No checkpoint was measured"
    if len(steps) == 1:
        return f"One checkpoint was measured, of step {steps[0]}"
    return f"{len(steps)} checkpoints were measured, of steps {min(steps)} to {max(steps)}"


def _planned(runs: Sequence[Run]) -> str:
    """Return the number of steps that were planned as a clause; "" if it is not known or not the same for all runs."""
    configs = [config if isinstance(config := run.manifest.get("config"), Mapping) else {} for run in runs]
    planned = {count if isinstance(count := one.get("steps"), int) else 0 for one in configs}
    count = planned.pop() if len(planned) == 1 else 0
    return f" of {count} planned" if count > 0 else ""


def _end(run: Run, of_all_data: bool, place: int) -> Quantity | None:
    """Return the first or the last finite loss of a run."""
    losses = (
        _evaluated(run)
        if of_all_data
        else run.columns("steps", "loss")["loss"].to_numpy(dtype=np.float64, na_value=np.nan)
    )
    finite = losses[np.isfinite(losses)]
    return Quantity(float(finite[place])) if len(finite) else None


def _evaluated(run: Run) -> FloatArray:
    """Return the finite losses on the fixed data, by step."""
    losses = probe_series(run, "loss").y
    return losses[np.isfinite(losses)]


def _last_step(run: Run) -> int:
    """Return the last step that was recorded; 0 if none was."""
    steps = run.columns("steps", "step")["step"]
    return int(steps.max()) if len(steps) else 0
