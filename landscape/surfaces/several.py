"""Fans of several points, paths from each to the next, and planes through them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.directions import unmoved_filters, unmoved_weights
from lossscope.landscape.surfaces.fan import fan, fan_losses, fan_range
from lossscope.landscape.surfaces.lines import CellOptions
from lossscope.landscape.surfaces.null import are_seeds, is_one_function, permuted, sibling
from lossscope.landscape.surfaces.path import has_statistics, path
from lossscope.landscape.surfaces.pictures import Fan, Nulls, Path as StraightPath, Plane
from lossscope.landscape.surfaces.plane import Located, eigen_plane, pca_plane, points_plane, random_planes
from lossscope.landscape.surfaces.targets import Point, Targets, data_notes, history_of, last_point
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective

__all__ = [
    "SeedPairs",
    "fans_at",
    "loss_seconds",
    "losses_of_fans",
    "losses_of_paths",
    "losses_of_plane",
    "nulls_of",
    "paths_between",
    "plane_of",
    "seed_pairs",
    "trainings_of",
]

Progress = Callable[[int], None]

_OF_ERROR: Final = 10  # losses that the sampling error of a barrier takes


@dataclass(frozen=True)
class SeedPairs:
    """Pairs of runs that differ in their seeds alone.

    Attributes:
        beside: Pairs by their arm, the second of which was found beside the first.
        given: Arms by the names of paths between two points that are such a pair.
        missing: Arms, or points, without such a pair, with the reason.
    """

    beside: dict[str, tuple[Point, Point]]
    given: dict[str, str]
    missing: dict[str, str]


def fans_at(
    found: Targets,
    *,
    radius: float | None,
    points: int,
    draws: int,
    seed: int,
    progress: Progress,
    cells: CellOptions | None = None,
) -> tuple[dict[str, Fan], tuple[str, ...]]:
    """Return a fan at each point, all with the same noise levels, and notes.

    Args:
        found: The points and the loss.
        radius: As for `fan`. Default: the largest that `fan` would choose for one of the points.
        points: As for `fan`.
        draws: As for `fan`.
        seed: As for `fan`.
        progress: As for `fan`.
        cells: As for `fan`.
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
    settings: dict[str, Any] = {"radius": radius, "points": points, "draws": draws, "seed": seed, "progress": progress}
    for place, point in enumerate(found.points):
        notes[point.load(objective)] = None
        notes |= dict.fromkeys(unmoved_weights(objective))
        fans[point.name] = fan(objective, cells=_cells_at(found, cells, place), **settings)
    return fans, (*_sentences(notes), *_kept(sum(one.kept for one in fans.values()), cells))


def paths_between(
    found: Targets, *, points: int, progress: Progress
) -> tuple[dict[str, StraightPath], tuple[str, ...]]:
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
        found_path = path(objective, objective.parameters(), end, points=points, progress=progress)
        paths[_between(first, second)] = replace(found_path, label=_label(first, second))
    return paths, _sentences(notes)


def nulls_of(found: Targets, pairs: SeedPairs, *, points: int, seed: int, progress: Progress) -> Nulls:
    """Return the barriers that chance alone makes, to be read beside those between the points.

    Args:
        found: The points and the loss. The first one is compared with a copy of it whose neurons are permuted.
        pairs: Pairs of seeds.
        points: As for `path`.
        seed: Seed of the permutation.
        progress: As for `path`.
    """
    objective, notes, first = found.objective, dict[str, None](), found.points[0]
    paths, missing = {}, dict(pairs.missing)
    notes[first.load(objective)] = None
    name = f"{first.name} to a copy of it with permuted neurons"
    try:
        other = permuted(objective, seed)
        to_copy = path(objective, objective.parameters(), other, points=points, progress=progress)
        if not is_one_function(to_copy):
            raise ProbeError("the copy with permuted neurons has another loss: what is known of the layers is not all")
        paths[name] = replace(to_copy, label="chance: permuted neurons")
    except (ProbeError, ConfigError) as error:
        missing[name] = str(error)
    for arm, (one, another) in pairs.beside.items():
        between, more = paths_between(Targets((one, another), objective), points=points, progress=progress)
        for words, one_path in between.items():
            paths[f"{words}, two seeds of {arm}"] = replace(one_path, label=f"chance: seeds of {arm}")
        notes |= dict.fromkeys((*more, *data_notes((one, another), objective)))
    return Nulls(paths, pairs.given, missing, (*_sentences(notes), *_common_starts(found.points)))


def _common_starts(points: Sequence[Point]) -> Iterator[str]:
    """Yield a sentence for each path between two runs that started from the same weights."""
    for first, second in pairwise(points):
        if first.run is None or second.run is None:
            continue
        seeds = [dict(one.manifest.get("seeds") or {}).get("init") for one in (first.run, second.run)]
        if seeds[0] is not None and seeds[0] == seeds[1] and first.run.path != second.run.path:
            yield (
                f"Both ends of the path from {_between(first, second)} were initialized with seed {seeds[0]}: such "
                "pairs have lower barriers than two seeds of one optimizer, which start from different weights."
            )


def seed_pairs(found: Targets) -> SeedPairs:
    """Return pairs of runs that differ in their seeds alone: among the points, or beside them.

    Args:
        found: The points.
    """
    given = {
        _between(one, another): str(one.run.manifest.get("arm") or one.run.name)
        for one, another in pairwise(found.points)
        if one.run is not None and another.run is not None and are_seeds(one.run, another.run)
    }
    beside, missing = dict[str, tuple[Point, Point]](), dict[str, str]()
    for point in found.points:
        if point.run is None:
            missing[f"two seeds of the optimizer of {point.name}"] = "a file of weights names no run"
            continue
        arm = str(point.run.manifest.get("arm") or point.run.name)
        if arm in beside or arm in given.values() or arm in missing:
            continue
        if (other := sibling(point.run)) is None:
            missing[f"two seeds of {arm}"] = f"no run beside {point.run.name} differs from it in its seeds alone"
        else:
            beside[arm] = (point, last_point(other, point.step))
    return SeedPairs(beside, given, missing)


def plane_of(
    found: Targets,
    kind: str,
    *,
    radius: float | None,
    points: int,
    planes: int,
    seed: int,
    progress: Progress,
    cells: CellOptions | None = None,
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
        cells: As for `random_planes`.
    """
    objective, notes = found.objective, dict[str, None]()
    origin = -1 if kind == "pca" else 0
    order = [*range(len(found.points))]
    order.append(order.pop(origin))  # so that the model is left with the weights and buffers of the origin
    trainings: dict[str, Iterable[Located]] = {
        name: _Loaded(checkpoints, found.points[0], objective)
        for name, checkpoints in (trainings_of(found).items() if kind != "pca" else ())
    }
    options = _cells_at(found, cells, origin % len(found.points))
    settings: dict[str, Any] = {"points": points, "progress": progress, "cells": options}
    if kind in ("random", "eigen"):
        notes[found.points[0].load(objective)] = None
        settings |= {"seed": seed, "trainings": trainings}
        if kind == "random":
            given: dict[str, Any] = {} if radius is None else {"radius": radius}
            plane = random_planes(objective, planes=planes, **given, **settings)
            notes |= dict.fromkeys(unmoved_filters(objective))
        else:
            plane = eigen_plane(objective, radius=radius, **settings)
        return plane, (*_sentences(notes), *_kept(plane.kept, cells))
    located = {place: _located(found.points[place], objective, notes) for place in order}
    ordered = [located[place] for place in range(len(located))]
    if kind == "points":
        plane = points_plane(objective, ordered, trainings=trainings, **settings)
        return plane, (*_sentences(notes), *_kept(plane.kept, cells))
    by_name = {point.name: located[place] for place, point in enumerate(found.points)}
    chosen = trainings_of(found, given=True)
    trainings = {name: [by_name[one.name] for one in checkpoints] for name, checkpoints in chosen.items()}
    if all(point.run is None for point in found.points):
        trainings = {"files in the order given": ordered}
    steps = [one.step if one.step is not None else place for place, one in enumerate(found.points)]
    plane = pca_plane(objective, ordered, steps, trainings=trainings, **settings)
    return plane, (*_sentences(notes), *_kept(plane.kept, cells))


def trainings_of(found: Targets, *, given: bool = False) -> dict[str, tuple[Point, ...]]:
    """Return the checkpoints of the runs of points by the name of the run, where there are at least two.

    Args:
        found: The points. Where several are of one run, these; else all checkpoints of the run.
        given: True for the points alone.
    """
    runs: dict[Path, list[Point]] = {}
    for point in found.points:
        if point.run is not None:
            runs.setdefault(point.run.path, []).append(point)
    names = [folder.name for folder in runs]
    trainings = {}
    for folder, points in runs.items():
        run = points[0].run
        history = tuple(points) if len(points) > 1 or given or run is None else history_of(run)
        if len(history) > 1:
            trainings[str(folder) if names.count(folder.name) > 1 else folder.name] = history
    return trainings


def losses_of_plane(found: Targets, kind: str, points: int, planes: int) -> int:
    """Return the number of losses of a plane, those at the points included."""
    more = sum(len(one) for one in trainings_of(found).values()) if kind != "pca" else 0
    return (points**2 + more) * (planes if kind == "random" else 1) + len(found.points)


@dataclass(frozen=True)
class _Loaded:
    """Checkpoints that are loaded into the model of a loss one after the other, and the origin after them."""

    points: Sequence[Point]
    origin: Point
    objective: Objective

    def __iter__(self) -> Iterator[Located]:
        """Yield the checkpoints."""
        for point in self.points:
            yield _located(point, self.objective, {})
        self.origin.load(self.objective)


def _located(point: Point, objective: Objective, notes: dict[str, None]) -> Located:
    """Load a point, and return its name, parameters and own loss; note what is said of it."""
    notes[point.load(objective)] = None
    theta = objective.parameters()
    return point.name, theta, objective.value_at(theta)


def losses_of_fans(found: Targets, points: int, draws: int, *, chosen: bool) -> int:
    """Return the number of losses of all fans, at most."""
    return len(found.points) * fan_losses(points, draws, chosen=chosen)


def losses_of_paths(found: Targets, points: int, nulls: int = 0) -> int:
    """Return the number of losses of all paths and of those beside them; with BatchNorm each point takes three."""
    each = points * (3 if has_statistics(found.objective.model) else 1) + _OF_ERROR
    return (len(found.points) - 1 + nulls) * each


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


def _between(first: Point, second: Point) -> str:
    """Return the name of the path between two points."""
    return f"{first.name} to {second.name}"


def _label(first: Point, second: Point) -> str:
    """Return short words for the ends of a path: their runs, without steps where they are of two runs."""
    runs = [first.run, second.run]
    if runs[0] is None or runs[1] is None or runs[0].path == runs[1].path:
        return _between(first, second)
    return f"{runs[0].name} to {runs[1].name}"


def _cells_at(found: Targets, cells: CellOptions | None, place: int) -> CellOptions | None:
    """Return how losses around one of the points are evaluated: other processes load its weights, too."""
    if cells is None or found.remake is None:
        return cells
    return replace(cells, remake=partial(found.remake, place))


def _kept(losses: int, cells: CellOptions | None) -> tuple[str, ...]:
    """Return a sentence about losses that an earlier call had left, if there are any."""
    if cells is None or not losses:
        return ()
    return (f"{losses} losses are those of an earlier call, kept in {cells.folder}.",)


def _sentences(notes: dict[str, None]) -> tuple[str, ...]:
    """Return the notes that are not empty, as sentences."""
    return tuple(f"{note[0].upper()}{note[1:]}." for note in notes if note)
