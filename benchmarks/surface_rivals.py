"""Grids of other libraries beside ours: `loss-landscapes` and `loss-landscape-3d`, each called as by a user.

Each function evaluates one `side` by `side` plane of two filter-normalized directions and returns its losses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from networks import Problem
from torch.utils.data import DataLoader, TensorDataset

Array = np.ndarray[Any, Any]
Grid = Callable[[Problem, int], Array]

RADIUS = 0.5  # half the side, as a share of the length of a filter-normalized direction


def installed(name: str) -> bool:
    """Return True if a library can be imported."""
    return importlib.util.find_spec(name) is not None


def loss_landscapes(problem: Problem, side: int) -> Array:
    """Return a plane of loss-landscapes: it moves a copy of the model step by step, with a graph."""
    from loss_landscapes import random_plane
    from loss_landscapes.metrics import Loss

    metric = Loss(torch.nn.CrossEntropyLoss(), *problem.batch)
    found: Array = random_plane(problem.model, metric, 1 / RADIUS, side, normalization="filter", deepcopy_model=True)
    return found


def landscape_3d(problem: Problem, side: int, batches: Any) -> Array:
    """Return a plane of loss-landscape-3d, which loads a state dict for each cell."""
    from loss_landscape_3d import LossLandscapeCalculator, generate_random_directions

    state = {name: one.clone() for name, one in problem.model.state_dict().items()}
    calculator = LossLandscapeCalculator(problem.model, batches, torch.nn.CrossEntropyLoss())
    grid = np.linspace(-RADIUS, RADIUS, side)
    found: Array = calculator.calculate(grid, grid, *generate_random_directions(problem.model), state)
    return found


def rivals() -> dict[str, Grid]:
    """Return the grids of the libraries that are installed, by name."""
    found: dict[str, Grid] = {}
    if installed("loss_landscapes"):
        found["loss-landscapes"] = loss_landscapes
    if installed("loss_landscape_3d"):
        found["loss-landscape-3d, a list of one batch"] = lambda problem, side: landscape_3d(
            problem, side, [problem.batch]
        )
        found["loss-landscape-3d, a DataLoader as documented"] = lambda problem, side: landscape_3d(
            problem, side, DataLoader(TensorDataset(*problem.batch), batch_size=len(problem.batch[1]))
        )
    return found
