"""Pictures of a loss in Python: fans, paths and planes around the weights of its model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any, Final, Literal, TypeAlias, get_args, overload

from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.fan import fan
from lossscope.landscape.surfaces.lines import CellOptions
from lossscope.landscape.surfaces.path import path
from lossscope.landscape.surfaces.pictures import Fan, Path, Plane
from lossscope.landscape.surfaces.plane import eigen_plane, random_planes
from lossscope.landscape.surfaces.several import plane_of
from lossscope.landscape.surfaces.targets import Point, Targets
from lossscope.probes.objective.objective import Objective

__all__ = ["PlaneKind", "surface"]

PlaneKind: TypeAlias = Literal["fan", "path", "random", "eigen", "points", "pca"]
States: TypeAlias = Mapping[str, Mapping[str, Tensor]]
Progress: TypeAlias = Callable[[int], None]

_OWN: Final = "the model"
_STATES: Final[dict[str, tuple[int, int | None]]] = {
    "path": (1, 1),
    "points": (2, 2),
    "pca": (2, None),
}  # least and largest number; none for the others
_SETTINGS: Final = {"fan": ("radius", "draws"), "random": ("radius", "draws"), "eigen": ("radius",)}


@overload
def surface(
    objective: Objective,
    plane: Literal["fan"] = "fan",
    *,
    radius: float | None = None,
    points: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Fan: ...


@overload
def surface(
    objective: Objective,
    plane: Literal["path"],
    *,
    states: States,
    points: int | None = None,
    progress: Progress | None = None,
) -> Path: ...


@overload
def surface(
    objective: Objective,
    plane: Literal["random", "eigen", "points", "pca"],
    *,
    states: States | None = None,
    radius: float | None = None,
    points: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Plane: ...


def surface(
    objective: Objective,
    plane: PlaneKind = "fan",
    *,
    states: States | None = None,
    radius: float | None = None,
    points: int | None = None,
    draws: int | None = None,
    seed: int = 0,
    cells: CellOptions | None = None,
    progress: Progress | None = None,
) -> Fan | Path | Plane:
    """Evaluate the loss around the weights of its model, or between them and other weights.

    These are the numbers of `lossscope surface`. The weights and buffers are restored bit for bit, after an exception
    too. The loss at the weights of the model is exactly `objective.value()`.

    Args:
        objective: The loss; the weights of its model are the center.
        plane: `fan`: random relative directions, with their quadratic models and the sharpest direction; `path`: the
            straight line to one other state; `random`: planes of filter-normalized directions; `eigen`: the plane of
            two Hessian eigenvectors; `points`: the plane through the model and two other states; `pca`: the plane of
            the principal components of states and, last, the model.
        states: Other state dicts of the model by name, for `path`, `points` and `pca`, where they are checkpoints in
            the order of training and equally many steps apart.
        radius: Largest relative noise of a fan, half the side of a random plane as a share of the weights, or of an
            eigenvector plane as a distance. Default: see `fan`, `random_planes` and `eigen_plane`.
        points: Losses on each line or side. Default: 25, and 21 of a path.
        draws: Directions of a fan (32), or random planes (3).
        seed: Seed of the directions.
        cells: Evaluation of the losses: memory of a block, a folder for finished lines.
        progress: Called with the number of losses evaluated since the last call.

    Returns:
        The fan, the path or the plane.

    Raises:
        ConfigError: An argument is out of range, or states are too few, too many or of another architecture.
        ProbeError: The loss is not finite at the model, or the picture needs derivatives that it does not have.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> data = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
        >>> objective = Objective(net, lambda model, x: (model(x) - 1).square().mean(), data)
        >>> other = {"weight": torch.ones(1, 2)}
        >>> with objective.at(torch.tensor([3.0, 1.0])):
        ...     found = surface(objective, "path", states={"solution": other}, points=3)
        >>> found.losses.tolist(), found.distance
        ([2.0, 0.5, 0.0], 2.0)
        >>> with objective.at(torch.tensor([3.0, 1.0])):
        ...     surface(objective, "random", points=3).losses.shape
        (3, 3, 3)
    """
    given = {"radius": radius, "draws": draws}
    _check(plane, states or {}, [name for name, value in given.items() if value is not None])
    size: dict[str, Any] = {} if points is None else {"points": points}
    size |= {"progress": progress}
    if plane == "path":
        with _restored(objective.model):
            ((name, state),) = (states or {}).items()
            start = objective.parameters()
            kept = _own_state(objective.model)
            Point(name, FilePath(name), weights=state).load(objective)
            end = objective.parameters()
            Point(_OWN, FilePath(_OWN), weights=kept).load(objective)
            return path(objective, start, end, **size)
    size |= {"cells": cells}
    if plane in ("points", "pca"):
        with _restored(objective.model):
            return _through(objective, plane, states or {}, size)
    size |= {"seed": seed} | ({} if radius is None else {"radius": radius})
    if plane == "eigen":
        return eigen_plane(objective, **size)
    if draws is not None:
        size["planes" if plane == "random" else "draws"] = draws
    return random_planes(objective, **size) if plane == "random" else fan(objective, **size)


def _through(objective: Objective, plane: str, states: States, size: Mapping[str, Any]) -> Plane:
    """Return the plane through the weights of a model and other states."""
    own = Point(_OWN, FilePath(_OWN), weights=_own_state(objective.model))
    others = [Point(name, FilePath(name), weights=state) for name, state in states.items()]
    found = Targets((*others, own) if plane == "pca" else (own, *others), objective)
    settings = {"points": 25, **size, "progress": size["progress"] or (lambda count: None)}
    return plane_of(found, plane, radius=None, planes=0, seed=0, **settings)[0]


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the weights and buffers of a model."""
    return {name: one.detach().clone() for name, one in model.state_dict().items() if isinstance(one, Tensor)}


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore the weights and buffers of a model at the end of this context."""
    before = _own_state(model)
    try:
        yield
    finally:
        model.load_state_dict(before, strict=False)


def _check(plane: str, states: States, settings: list[str]) -> None:
    """Reject an unknown plane, a wrong number of states, and settings that the plane does not have."""
    if plane not in get_args(PlaneKind):
        raise ConfigError(f"plane must be one of {', '.join(get_args(PlaneKind))}, got {plane!r}")
    least, largest = _STATES.get(plane, (0, 0))
    if not least <= len(states) or (largest is not None and len(states) > largest):
        wanted = {0: "no states", 1: "1 state", 2: "2 states"}[least] if largest is not None else "at least 2 states"
        raise ConfigError(
            f"plane {plane!r} needs {wanted} beside the model, got {len(states)}: pass states={{name: ...}}"
        )
    for name in settings:
        if name not in _SETTINGS.get(plane, ()):
            raise ConfigError(f"plane {plane!r} has no {name}: leave it out")
