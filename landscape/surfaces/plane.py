"""Planes: random ones, of Hessian eigenvectors, through three points, and of the principal components of points."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Final, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.directions import filter_normalized, orthonormal
from lossscope.landscape.surfaces.lines import CellOptions, LineLosses, PlaneLines, evaluated_lines
from lossscope.landscape.surfaces.pictures import Array, Mark, Plane, Trail
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sums import all_finite, dot, gram, norm

__all__ = ["Located", "Trainings", "eigen_plane", "pca_plane", "points_plane", "random_planes", "walk_shares"]

Progress: TypeAlias = Callable[[int], None]
Located: TypeAlias = tuple[str, Tensor, float]  # name of a point, its parameters, and its own loss
Trainings: TypeAlias = Mapping[str, Iterable[Located]]  # checkpoints by the name of their run, read once a plane

_NOTHING: Final[Trainings] = MappingProxyType({})
_MARGIN: Final = 0.25  # of the extent of the points, on each side of a plane through them
_RISE: Final = 1.0  # of a quadratic along the second eigenvector, at the edge of a plane
_LEAST: Final = 3  # points of which principal components are taken


def random_planes(
    objective: Objective,
    *,
    radius: float = 0.5,
    points: int = 25,
    planes: int = 3,
    trainings: Trainings = _NOTHING,
    seed: int = 0,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Plane:
    """Evaluate the loss on planes of two random filter-normalized directions.

    Planes differ: the spread between them is part of the answer. A single one ranks two solutions wrongly one time in
    four where one is sharper by a factor of 1.75. Filter normalization fixes lengths of directions, and no symmetry:
    rescaling the neurons of the same function changes the picture without limit, which it does not do to a fan.

    Args:
        objective: The loss.
        radius: Half the side of the planes, as a share of the length of a filter-normalized direction.
        points: Losses along each side, odd.
        planes: Number of planes, at least 2.
        trainings: Checkpoints that are shown on the planes.
        seed: Seed.
        cells: How the losses are evaluated, as for `fan`.
        progress: Called with the number of losses evaluated since the last call.

    Returns:
        The planes. Cost: `planes * points ** 2` losses. The model is not written. Memory: about six vectors,
        and two for each plane.

    Raises:
        ConfigError: An argument is out of range, or no parameter is a matrix.

    Source:
        H. Li et al. (2018), arXiv:1712.09913; docs/howto/draw_a_landscape.md for what it cannot show.
    """
    _check(radius, points)
    if planes < 2:
        raise ConfigError(f"planes must be at least 2, so that their spread is seen, got {planes}")
    begun, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    found, every, side, options = list[LineLosses](), list[tuple[Tensor, Tensor]](), 0.0, cells or CellOptions()
    with objective.evaluating():
        loss, theta = objective.value(), objective.parameters()
        for _ in range(planes):
            first = filter_normalized(objective, generator)
            side = side or radius * float(norm(first))
            axes = orthonormal(first, filter_normalized(objective, generator), ("a random direction", "another one"))
            grid = _grid(side, points)
            found.append(_losses(objective, theta, loss, axes, grid, grid, options, progress))
            options = replace(options, way=found[-1].way)
            every.append(axes)
    trails = tuple(one for number, axes in enumerate(every) for one in _trails(trainings, theta, axes, number))
    names = ("first random direction", "second random direction")
    return replace(_plane(grid, grid, found, names, loss, begun), trails=trails)


def eigen_plane(
    objective: Objective,
    *,
    radius: float | None = None,
    points: int = 25,
    trainings: Trainings = _NOTHING,
    seed: int = 0,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Plane:
    """Evaluate the loss on the plane of the two outermost Hessian eigenvectors.

    Args:
        objective: The loss.
        radius: Half the side of the plane, a distance in the space of the parameters. Default: where a quadratic with
            the second eigenvalue has risen by 1.
        points: Losses along each side, odd.
        trainings: Checkpoints that are shown on the plane.
        seed: Seed of the search for eigenvectors.
        cells: As for `random_planes`.
        progress: As for `random_planes`.

    Returns:
        The plane; its axes name the eigenvalues. Cost: `points ** 2` losses and the products of the eigenvectors.

    Raises:
        ConfigError: An argument is out of range.
        ProbeError: The Hessian has no products, or is zero.
    """
    _check(1.0 if radius is None else radius, points)
    begun = time.perf_counter()
    with objective.evaluating():
        loss, theta = objective.value(), objective.parameters()
        found = measure_spectrum(hessian(objective), top=2, rel=0.05, quantities=("top",), seed=seed)
        if found.top is None or len(found.top.values) < 2:
            raise ProbeError("two Hessian eigenvectors are needed for a plane, and were not found")
        values = [float(one) for one in found.top.values]
        if radius is None:
            if values[1] <= 0:
                raise ProbeError(f"the second eigenvalue is {values[1]:.3g}, not above 0: give a radius")
            radius = math.sqrt(2 * _RISE / values[1])
        first, second = (found.top.vectors[:, i].to(theta).contiguous() for i in (0, 1))
        grid = _grid(radius, points)
        losses = _losses(objective, theta, loss, (first, second), grid, grid, cells, progress)
    trails = _trails(trainings, theta, (first, second))
    names = tuple(f"eigenvector of λ = {one:.3g}" for one in values)
    return replace(_plane(grid, grid, [losses], (names[0], names[1]), loss, begun), trails=trails)


def points_plane(
    objective: Objective,
    located: Sequence[Located],
    *,
    points: int = 25,
    trainings: Trainings = _NOTHING,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Plane:
    """Evaluate the loss on the plane through three points.

    Args:
        objective: The loss, with the buffers of the first point.
        located: The points; the first is the origin, the first axis leads to the second.
        points: Losses along each side.
        trainings: Checkpoints that are shown on the plane.
        cells: As for `random_planes`.
        progress: As for `random_planes`.

    Returns:
        The plane, with the points and their own losses.

    Raises:
        ConfigError: There are not three points, or they lie on a line.
    """
    if len(located) != 3:
        raise ConfigError(f"a plane through points needs 3 of them, got {len(located)}")
    _check_finite(located)
    origin = located[0][1]
    axes = orthonormal(located[1][1] - origin, located[2][1] - origin, (f"the way to {located[1][0]}", located[2][0]))
    names = (f"from {located[0][0]} to {located[1][0]}", f"toward {located[2][0]}")
    return _through(objective, located, origin, axes, names, points, trainings, cells, progress)


def pca_plane(
    objective: Objective,
    located: Sequence[Located],
    steps: Sequence[int],
    *,
    points: int = 25,
    trainings: Trainings = _NOTHING,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Plane:
    """Evaluate the loss on the plane of the first two principal components of the points of a training.

    Principal components of a random walk in many dimensions hold 61 % and 15 % of its variance, whatever the loss, and
    draw the same arc: `walk` has the shares that a walk with these steps has, beside the measured ones.

    Args:
        objective: The loss, with the buffers of the last point.
        located: The points in the order of training; the last one is the origin.
        steps: The step of each; `walk` is None if they do not ascend, as points of several trainings.
        points: Losses along each side.
        trainings: Checkpoints that are shown on the plane; in the space of the points, if they are not among them.
        cells: As for `random_planes`.
        progress: As for `random_planes`.

    Returns:
        The plane, with the points and their own losses. Memory: as many vectors as points, twice.

    Raises:
        ConfigError: There are fewer than three points, or they lie on a line.

    Source:
        J. Antognini and J. Sohl-Dickstein (2018), PCA of high dimensional random walks with comparison to neural
        network training, arXiv:1806.08805.
    """
    if len(located) < _LEAST:
        raise ConfigError(f"principal components need at least {_LEAST} checkpoints, got {len(located)}")
    _check_finite(located)
    rows = torch.stack([vector for _, vector, _ in located])
    rows -= rows.mean(0)
    products = gram(rows, rows).double().cpu()
    values, weights = torch.linalg.eigh(products)
    total = float(values.clamp(min=0).sum())
    if not float(values[-2]) > 1e-10 * total:
        raise ConfigError(f"the {len(located)} checkpoints lie on a line: they span no plane")
    spanned = [(weights[:, -i].to(rows) @ rows) for i in (1, 2)]
    axes = orthonormal(spanned[0], spanned[1], ("the first principal component", "the second one"))
    explained = (float(values[-1]) / total, float(values[-2]) / total)
    names = tuple(f"principal component {i + 1}, {100 * share:.0f} %" for i, share in enumerate(explained))
    found = _through(objective, located, located[-1][1], axes, (names[0], names[1]), points, trainings, cells, progress)
    walk = walk_shares(steps) if all(a < b for a, b in pairwise(steps)) else None
    return replace(found, explained=explained, walk=walk)


def _check_finite(located: Sequence[Located]) -> None:
    """Reject points that are nowhere."""
    for name, vector, _ in located:
        if not all_finite(vector):
            raise ConfigError(f"{name} has parameters that are not finite: no plane holds it, leave it out")


def walk_shares(steps: Sequence[int]) -> tuple[float, float]:
    """Return the shares of the variance of a random walk in many dimensions along its first two components.

    Args:
        steps: Times at which the walk is seen, ascending.
    """
    times = np.asarray(steps, dtype=np.float64)
    covariance = np.minimum.outer(times, times) - times.min()
    centered = covariance - covariance.mean(0) - covariance.mean(1)[:, None] + covariance.mean()
    values = np.linalg.eigvalsh(centered)
    return float(values[-1] / values.sum()), float(values[-2] / values.sum())


def _through(
    objective: Objective,
    located: Sequence[Located],
    origin: Tensor,
    axes: tuple[Tensor, Tensor],
    names: tuple[str, str],
    points: int,
    trainings: Trainings,
    cells: CellOptions | None,
    progress: Progress | None,
) -> Plane:
    """Return the plane that holds points, with a margin around them."""
    if points < 3:
        raise ConfigError(f"points must be at least 3, got {points}")
    begun = time.perf_counter()
    marks = tuple(_mark(name, vector - origin, axes, loss) for name, vector, loss in located)
    trails = _trails(trainings, origin, axes)
    shown = [*marks, *(mark for trail in trails for mark in trail.marks)]
    x, y = (_extent([getattr(mark, axis) for mark in shown], points) for axis in ("x", "y"))
    with objective.evaluating():
        loss = objective.value_at(origin)
        losses = _losses(objective, origin, loss, axes, x, y, cells, progress)
    return replace(_plane(x, y, [losses], names, loss, begun), marks=marks, trails=trails)


def _trails(trainings: Trainings, origin: Tensor, axes: tuple[Tensor, Tensor], plane: int = 0) -> tuple[Trail, ...]:
    """Return the checkpoints of trainings on a plane, with the share of their variance along its axes."""
    found = []
    for name, located in trainings.items():
        marks, squares, total = list[Mark](), list[float](), torch.zeros_like(origin)
        for one in located:  # one vector at a time
            _check_finite([one])
            offset = one[1] - origin
            marks.append(_mark(one[0], offset, axes, one[2]))
            squares.append(float(norm(offset)) ** 2)
            total += offset
        spread = math.fsum(squares) - float(norm(total)) ** 2 / len(marks)
        along = float(np.var([one.x for one in marks]) + np.var([one.y for one in marks])) * len(marks)
        found.append(Trail(name, plane, tuple(marks), min(along / spread, 1.0) if spread > 0 else 0.0))
    return tuple(found)


def _mark(name: str, offset: Tensor, axes: tuple[Tensor, Tensor], loss: float) -> Mark:
    """Return the projection of a point, and its distance from the plane."""
    x, y = (float(dot(axis, offset)) for axis in axes)
    away = offset - x * axes[0] - y * axes[1]
    return Mark(name, x, y, loss, float(norm(away)))


def _extent(places: Sequence[float], points: int) -> Array:
    """Return the coordinates of a side that holds places with a margin, the origin among them."""
    width = max(places) - min(places)
    low, high = min(*places, 0.0) - _MARGIN * width, max(*places, 0.0) + _MARGIN * width
    grid = np.linspace(low, high, points)
    grid -= grid[np.argmin(np.abs(grid))]  # the origin is a point of the grid
    found: Array = grid
    return found


def _grid(side: float, points: int) -> Array:
    """Return the coordinates of a side, the origin exactly in the middle."""
    half = np.linspace(0.0, side, points // 2 + 1)
    return np.concatenate([-half[:0:-1], half])


def _losses(
    objective: Objective,
    origin: Tensor,
    loss: float,
    axes: tuple[Tensor, Tensor],
    x: Array,
    y: Array,
    cells: CellOptions | None,
    progress: Progress | None,
) -> LineLosses:
    """Return the losses on a grid, `(m, k)`; nan where they are not finite, the given loss at the origin."""
    lines = PlaneLines(origin, axes, x, y)
    found = evaluated_lines(objective, lines, cells or CellOptions(), progress or (lambda count: None))
    found.losses[np.ix_(y == 0, x == 0)] = loss if math.isfinite(loss) else math.nan
    return found


def _plane(
    x: Array,
    y: Array,
    found: Sequence[LineLosses],
    names: tuple[str, str],
    loss: float,
    begun: float,
) -> Plane:
    """Return the planes with how they were evaluated."""
    return Plane(
        x,
        y,
        np.stack([one.losses for one in found]),
        names,
        loss,
        seconds=time.perf_counter() - begun,
        evaluated="; ".join(dict.fromkeys(one.evaluated for one in found)),
        kept=sum(one.kept for one in found),
    )


def _check(radius: float, points: int) -> None:
    """Reject arguments out of range."""
    if not 0 < radius < math.inf:
        raise ConfigError(f"radius must be above 0, got {radius:g}")
    if points < 3 or points % 2 == 0:
        raise ConfigError(f"points must be odd and at least 3, so that the model's own loss is one, got {points}")
