"""Fans of several points, paths from each to the next, and planes through them."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from lossscope.landscape.surfaces.fan import fan, fan_losses, fan_range
from lossscope.landscape.surfaces.path import has_statistics, path
from lossscope.landscape.surfaces.pictures import Fan, Path, Plane
from lossscope.landscape.surfaces.plane import eigen_plane, pca_plane, points_plane, random_planes
from lossscope.landscape.surfaces.targets import Targets

__all__ = ["fans_at", "loss_seconds", "losses_of_fans", "losses_of_paths", "paths_between", "plane_of"]

Progress = Callable[[int], None]


def fans_at(
    found: Targets, *, radius: float | None, points: int, draws: int, seed: int, progress: Progress
) -> tuple[dict[str, Fan], tuple[str, ...]]:
    """Return a fan at each point, all with the same noise levels, and notes.

    Args:
        found: The points and the loss.
        radius: As for `fan`. Default: the largest that `fan` would choose for one of the points.
        points: As for `fan`.
        draws: As for `fan`.
        seed: As for `fan`.
        progress: As for `fan`.
    """
    objective, notes = found.objective, dict[str, None]()
    if radius is None:
        edges = []
        for point in found.points:
            notes[point.load(objective)] = None
            with objective.evaluating():
                edges.append(fan_range(objective, objective.value(), seed, progress))
        radius = max(edges)
    fans = {}
    for point in found.points:
        notes[point.load(objective)] = None
        fans[point.name] = fan(objective, radius=radius, points=points, draws=draws, seed=seed, progress=progress)
    return fans, _sentences(notes)


def paths_between(found: Targets, *, points: int, progress: Progress) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the straight path from each point to the next, and notes.

    Args:
        found: The points and the loss.
        points: As for `path`.
        progress: As for `path`.
    """
    objective, notes, paths = found.objective, dict[str, None](), {}
    for first, second in pairwise(found.points):
        notes[second.load(objective)] = None
        end = objective.parameters()
        notes[first.load(objective)] = None
        name = f"{first.name} to {second.name}"
        paths[name] = path(objective, objective.parameters(), end, points=points, progress=progress)
    return paths, _sentences(notes)


def plane_of(
    found: Targets, kind: str, *, radius: float | None, points: int, planes: int, seed: int, progress: Progress
) -> tuple[Plane, tuple[str, ...]]:
    """Return a plane at the first point, or through all of them, and notes.

    Args:
        found: The points and the loss.
        kind: `random`, `eigen`, `points` or `pca`.
        radius: As for `random_planes` and `eigen_plane`; planes through points have no radius.
        points: As for `random_planes`.
        planes: As for `random_planes`.
        seed: As for `random_planes`.
        progress: As for `random_planes`.
    """
    objective, notes = found.objective, dict[str, None]()
    settings: dict[str, Any] = {"points": points, "progress": progress}
    if kind in ("random", "eigen"):
        notes[found.points[0].load(objective)] = None
        if kind == "random":
            given: dict[str, Any] = {} if radius is None else {"radius": radius}
            return random_planes(objective, planes=planes, seed=seed, **given, **settings), _sentences(notes)
        return eigen_plane(objective, radius=radius, seed=seed, **settings), _sentences(notes)
    located = []
    origin = -1 if kind == "pca" else 0
    order = [*range(len(found.points))]
    order.append(order.pop(origin))  # so that the model is left with the weights and buffers of the origin
    for place in order:
        point = found.points[place]
        notes[point.load(objective)] = None
        located.append((place, (point.name, objective.parameters(), objective.value_at(objective.parameters()))))
    ordered = [one for _, one in sorted(located, key=lambda one: one[0])]
    if kind == "points":
        return points_plane(objective, ordered, **settings), _sentences(notes)
    steps = [one.step if one.step is not None else place for place, one in enumerate(found.points)]
    return pca_plane(objective, ordered, steps, **settings), _sentences(notes)


def losses_of_fans(found: Targets, points: int, draws: int, *, chosen: bool) -> int:
    """Return the number of losses of all fans, at most."""
    return len(found.points) * fan_losses(points, draws, chosen=chosen)


def losses_of_paths(found: Targets, points: int) -> int:
    """Return the number of points on all paths; with BatchNorm each takes three losses."""
    return (len(found.points) - 1) * points * (3 if has_statistics(found.objective.model) else 1)


def loss_seconds(found: Targets) -> float:
    """Return the time of one loss at other parameters, the second of two."""
    objective = found.objective
    found.points[0].load(objective)
    with objective.evaluating():
        theta = objective.parameters()
        objective.value_at(theta)
        begun = time.perf_counter()
        objective.value_at(theta)
        return time.perf_counter() - begun


def _sentences(notes: dict[str, None]) -> tuple[str, ...]:
    """Return the notes that are not empty, as sentences."""
    return tuple(f"{note[0].upper()}{note[1:]}." for note in notes if note)
