"""Judgement of an ablation: all contrasts of its grid at one training loss."""

from __future__ import annotations

from collections.abc import Sequence

from lossscope.landscape.experiments.grid import Grid
from lossscope.landscape.run import Run
from lossscope.landscape.verdicts.contrasts import ContrastTable, contrasts
from lossscope.landscape.verdicts.level import loss_name, lowest_level

__all__ = ["judged"]


def judged(grid: Grid, runs: Sequence[Run]) -> ContrastTable | None:
    """Return the contrasts of a grid; None if it has none, or takes no evaluations of curvature.

    Without a level in the grid it is the lowest that all finished runs of the contrasts reach. Diverged runs count as
    members of their pairs, which then have no value there: no pair is left out silently.

    Args:
        grid: The grid.
        runs: Its runs, diverged ones included.
    """
    if not grid.contrasts or (grid.settings.get("evaluations") == 0 and not grid.settings.get("evaluate_at")):
        return None
    return contrasts(grid.contrasts, runs, level=grid.level or _lowest(grid, runs) or "lowest")


def _lowest(grid: Grid, runs: Sequence[Run]) -> float | None:
    """Return the lowest training loss that all finished runs of the contrasts reach."""
    arms = {arm for pair in grid.contrasts.values() for arm in pair}
    finished = [run for run in runs if run.status == "finished" and run.manifest.get("arm") in arms]
    return lowest_level(finished, loss_name(runs))
