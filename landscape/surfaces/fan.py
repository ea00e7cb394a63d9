"""Fan: the loss along random relative directions through a point, with the quadratic model and a sharp direction."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.directions import relative_directions
from lossscope.landscape.surfaces.lines import CellOptions, FanLines, evaluated_lines
from lossscope.landscape.surfaces.pictures import Array, Fan
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sums import dot

__all__ = ["fan", "fan_losses", "fan_range"]

Progress: TypeAlias = Callable[[int], None]

_DRAWS: Final = 32
_POINTS: Final = 25  # noise levels on both sides, the center included
_LEAST: Final = 8  # directions without which there is no band
_RISE: Final = 1.0  # of the loss, nats, in the median direction at the edge of the picture, at most
_LARGEST: Final = 1.0  # relative noise at the edge
_SEARCHED: Final = 8  # directions by which the edge is chosen
_HALVINGS: Final = 10


def fan(
    objective: Objective,
    *,
    radius: float | None = None,
    points: int = _POINTS,
    draws: int = _DRAWS,
    quadratic: bool = True,
    sharp: bool = True,
    seed: int = 0,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Fan:
    """Evaluate the loss along random relative directions.

    Relative directions give one picture for all parameters of one function that differ by a diagonal rescaling of
    neurons, with the same seed, up to rounding. One random direction is not the landscape: directions differ by a third
    to two thirds of their mean, so the band belongs to the picture.

    Args:
        objective: The loss.
        radius: Largest relative noise, above 0. Default: where the loss rises by about 1 nat in the median direction,
            at most 1.
        points: Noise levels on both sides together, odd, so that 0 is one of them.
        draws: Number of directions, at least 8.
        quadratic: True for the quadratic model of each direction: a Hessian product each.
        sharp: True for the loss along the top eigenvector of diag(theta) H diag(theta).
        seed: Seed.
        cells: How the losses are evaluated. Default: in this process, in the fastest way that gives the right values.
        progress: Called with the number of losses evaluated since the last call.

    Returns:
        The fan. Cost: see `fan_losses`. The model is not written. Memory: about five vectors of the length of the
        parameters, those of a product and of a Krylov space, and a block of points.

    Raises:
        ConfigError: An argument is out of range.
        ProbeError: The loss itself is not finite.

    Source:
        Relative noise: docs/measures/basin.md.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: (model(x) - 2).square().mean(), [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([2.0])):
        ...     found = fan(objective, radius=0.1, points=3)
        >>> float(found.losses[0, 1]), bool((found.losses[:, 0] > 0).all())  # at 0, and at -0.1
        (0.0, True)
    """
    _check(radius, points, draws)
    begun = time.perf_counter()
    tell = progress or (lambda count: None)
    with objective.evaluating():
        loss, theta = objective.value(), objective.parameters()
        if not bool(theta.count_nonzero()):
            raise ProbeError("all parameters are zero: relative noise changes none of them")
        edge = fan_range(objective, loss, seed, tell) if radius is None else radius
        half = np.linspace(0.0, edge, points // 2 + 1)
        sigmas = np.concatenate([-half[:0:-1], half])
        middle = points // 2
        lines = FanLines(theta, draws, seed, np.delete(sigmas, middle))
        around = evaluated_lines(objective, lines, cells or CellOptions(), tell)
        losses = np.insert(around.losses, middle, loss, axis=1)
        missing: dict[str, str] = {}
        models = _models(objective, theta, loss, sigmas, draws, seed, missing) if quadratic else None
        line, value, error = _sharp(objective, theta, loss, sigmas, seed, missing, tell) if sharp else _NOTHING
    evaluated, kept, seconds = around.evaluated, around.kept, time.perf_counter() - begun
    return Fan(sigmas, losses, models, line, value, error, loss, seed, seconds, missing, evaluated, kept)


def fan_losses(points: int = _POINTS, draws: int = _DRAWS, *, sharp: bool = True, chosen: bool = True) -> int:
    """Return the number of losses of a fan at most, beside the products of its model and of its sharp direction.

    Args:
        points: Noise levels.
        draws: Directions.
        sharp: True if the sharp direction is drawn, too.
        chosen: True if the range is chosen by losses.
    """
    return (points - 1) * (draws + sharp) + ((_HALVINGS - 1) * _SEARCHED if chosen else 0)


def fan_range(objective: Objective, loss: float, seed: int, tell: Progress = lambda count: None) -> float:
    """Return the largest of 1, 1/2, 1/4, ... 1/512 at which the loss rises by at most 1 nat in the median direction.

    Args:
        objective: The loss.
        loss: Its value at the parameters.
        seed: Seed of the eight directions that are tried.
        tell: Called with the number of losses evaluated.
    """
    theta, edge = objective.parameters(), _LARGEST
    for _ in range(_HALVINGS - 1):
        rises = [
            objective.value_at(torch.add(theta, d, alpha=edge)) - loss
            for d in relative_directions(theta, _SEARCHED, seed)
        ]
        tell(_SEARCHED)
        if float(np.median([one if math.isfinite(one) else math.inf for one in rises])) <= _RISE:
            return edge
        edge /= 2
    return edge


_NOTHING: Final = (None, math.nan, math.nan)


def _check(radius: float | None, points: int, draws: int) -> None:
    """Reject arguments out of range."""
    if radius is not None and not 0 < radius < math.inf:
        raise ConfigError(f"radius must be above 0, got {radius:g}: it is the largest relative noise, such as 0.3")
    if points < 3 or points % 2 == 0:
        raise ConfigError(f"points must be odd and at least 3, so that the model's own loss is one, got {points}")
    if draws < _LEAST:
        raise ConfigError(f"draws must be at least {_LEAST} for a band, got {draws}")


def _along(
    objective: Objective, loss: float, direction: Tensor, sigmas: Sequence[float] | Array, tell: Progress
) -> Array:
    """Return the loss at multiples of a direction; nan where it is not finite."""
    theta = objective.parameters()
    found = [
        loss if sigma == 0 else objective.value_at(torch.add(theta, direction, alpha=float(sigma))) for sigma in sigmas
    ]
    tell(len(found) - 1)
    return np.array([one if math.isfinite(one) else math.nan for one in found])


def _models(
    objective: Objective, theta: Tensor, loss: float, sigmas: Array, draws: int, seed: int, missing: dict[str, str]
) -> Array | None:
    """Return the quadratic models along the directions; None with the reason where there is no product."""
    try:
        slope, operator = objective.gradient(), hessian(objective)
        found = []
        with operator.cached():
            for d in relative_directions(theta, draws, seed):
                slant, bend = float(dot(slope, d)), float(dot(d, operator @ d))
                found.append(loss + sigmas * slant + sigmas**2 / 2 * bend)
    except ProbeError as error:
        missing["quadratic model"] = str(error)
        return None
    return np.stack(found)


def _sharp(
    objective: Objective,
    theta: Tensor,
    loss: float,
    sigmas: Array,
    seed: int,
    missing: dict[str, str],
    tell: Progress,
) -> tuple[Array | None, float, float]:
    """Return the loss along the sharpest relative direction, its eigenvalue and the bound of that."""
    try:
        found = measure_spectrum(scaled(hessian(objective), theta), top=1, rel=0.05, quantities=("top",), seed=seed)
        top = found.top
        if top is None or not len(top.values):
            raise ProbeError("no eigenvector was found")
        estimate = top.estimate()
    except ProbeError as error:
        missing["sharpest direction"] = str(error)
        return _NOTHING
    line = _along(objective, loss, top.vectors[:, 0].to(theta) * theta, sigmas, tell)
    return line, estimate.value, estimate.high - estimate.value
