"""Runs that decide the founding claims: those arms of the shipped grid that the claims name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lossscope.landscape.verdicts.claims import Claim

__all__ = ["train_founding_runs"]

_GRID: Final = "parts"


def train_founding_runs(claims: Iterable[Claim]) -> Path | None:
    """Train what is missing of the runs that claims name, and return their folder; None if the grid has no such arm.

    Only claims about a task of the shipped grid, or about any task, are trained for; others need runs of their own.

    Args:
        claims: Claims whose runs are affordable.
    """
    from lossscope.cli.progress import progress_bar
    from lossscope.landscape.experiments.ablation import ablate
    from lossscope.landscape.experiments.grid import read_grid

    grid = read_grid(_GRID)
    here = [claim for claim in claims if not claim.tasks or set(claim.tasks) & set(grid.workloads)]
    named = {name for claim in here for name in (*claim.a, *claim.b)}
    arms = {name: settings for name, settings in grid.arms.items() if name in named}
    if not arms:
        return None
    with progress_bar("founding claims") as progress:
        ablate(replace(grid, arms=arms, contrasts={}), progress=progress)
    return grid.folder
