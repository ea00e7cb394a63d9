"""Ways to evaluate the losses at points of a line: each alone, in place, or in blocks by `torch.func.vmap`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lossscope.landscape.surfaces.pictures import Array
from lossscope.probes.objective.evaluation import ULPS
from lossscope.probes.objective.module_state import ModuleState
from lossscope.probes.objective.objective import Objective
from lossscope.probes.objective.parameters import shaped

__all__ = ["ALONE", "Way", "agree", "chosen_way", "line_losses"]

_SLOW: Final = 0.05  # seconds of a loss from which the work around it does not matter
_FASTER: Final = 0.8  # share of the time at which another way is taken
_TRIED: Final = 16  # points by which ways are compared, and in a block at most
_ROUNDS: Final = 2


@dataclass(frozen=True)
class Way:
    """Number of points that are evaluated at once.

    Attributes:
        block: 0 for each alone, by `Objective.value_at`; 1 for one after another in place, with the model set up once
            for a line; above for blocks of that many points by `torch.func.vmap`.
    """

    block: int

    def __str__(self) -> str:
        """Return the way in words."""
        return {0: "each alone", 1: "one after another in place"}.get(
            self.block, f"blocks of up to {self.block} by vmap"
        )


ALONE: Final = Way(0)
_IN_PLACE: Final = Way(1)


def line_losses(
    objective: Objective, base: Tensor, direction: Tensor, places: Sequence[float] | Array, way: Way
) -> Array:
    """Return the losses at some points of a line; nan where they are not finite.

    Args:
        objective: The loss.
        base: `(n,)`, the point at 0.
        direction: `(n,)`.
        places: Multiples of the direction.
        way: How they are evaluated. In place gives the bits of each alone, blocks may round differently.

    Raises:
        Exception: The way does not suit the model; `ALONE` suits all.
    """
    places = [float(place) for place in places]
    with objective.evaluating():
        if way.block == 0 or not places:
            found = [objective.value_at(torch.add(base, direction, alpha=place)) for place in places]
        else:
            _require_stateless(objective)
            evaluate = _in_place if way.block == 1 else _in_blocks
            found = _mean(
                objective, [evaluate(objective, base, direction, places, way, at) for at in _batches(objective)]
            )
    return np.array([one if math.isfinite(one) else math.nan for one in found], dtype=np.float64)


def chosen_way(objective: Objective, base: Tensor, direction: Tensor, places: Array, memory: int) -> Way:
    """Return the fastest way that gives the values of each alone, as measured at some points of a line.

    Nothing is tried where a single loss takes so long that the work around it does not matter. Blocks are taken where
    they need at most 80 % of the time.

    Args:
        objective: The loss.
        base: As in `line_losses`.
        direction: As in `line_losses`.
        places: As in `line_losses`; up to 16 of them are used, both ends included.
        memory: Bytes that a block may take.
    """
    tried = [float(places[int(i)]) for i in np.unique(np.linspace(0, len(places) - 1, _TRIED).round())]
    with objective.evaluating():
        first = line_losses(objective, base, direction, tried[:1], ALONE)
        begun = time.perf_counter()
        line_losses(objective, base, direction, tried[:1], ALONE)
        if time.perf_counter() - begun > _SLOW or not len(first):
            return ALONE
        truth = line_losses(objective, base, direction, tried, ALONE)
        ways = [
            way
            for way in _candidates(objective, memory, len(places))
            if _suits(objective, base, direction, tried, truth, way)
        ]
        seconds = _times([ALONE, *ways], lambda way: line_losses(objective, base, direction, tried, way))
    best = ALONE
    for way in ways:  # in place has the same bits and any gain counts; blocks round differently, and must pay
        if seconds[way] < (1.0 if way == _IN_PLACE else _FASTER) * seconds[best]:
            best = way
    return best


def agree(found: Array, truth: Array, objective: Objective) -> bool:
    """Return True if losses are equal up to the rounding of an evaluation, and not finite at the same points.

    Args:
        found: Losses.
        truth: The same, evaluated each alone.
        objective: The loss, for its rounding unit.
    """
    unit = ULPS * objective.vector.unit
    lost = np.isnan(truth)
    apart = np.abs(found - truth) > unit * np.maximum(np.abs(found), np.abs(truth))
    return bool((np.isnan(found) == lost).all() and not apart[~lost].any())


def _candidates(objective: Objective, memory: int, points: int) -> list[Way]:
    """Return the other ways, blocks as large as the memory allows."""
    one = _point_bytes(objective)
    largest = min(_TRIED, points, memory // max(one, 1))
    blocks = [size for size in (largest // 4, largest) if size > 1]
    return [_IN_PLACE, *(Way(int(size)) for size in blocks)]


def _suits(
    objective: Objective, base: Tensor, direction: Tensor, places: Sequence[float], truth: Array, way: Way
) -> bool:
    """Return True if a way gives the values of each alone."""
    try:
        return agree(line_losses(objective, base, direction, places, way), truth, objective)
    except Exception:  # vmap and the user's model may raise anything: the way is left out, and the provenance says so
        return False


def _times(ways: Sequence[Way], run: Callable[[Way], Any]) -> dict[Way, float]:
    """Return the smallest time of each way, in interleaved rounds."""
    seconds = dict.fromkeys(ways, math.inf)
    for _ in range(_ROUNDS):
        for way in ways:
            begun = time.perf_counter()
            run(way)
            seconds[way] = min(seconds[way], time.perf_counter() - begun)
    return seconds


def _require_stateless(objective: Objective) -> None:
    """Raise if evaluations of points must be set up one by one."""
    if objective.mode != "eval" or objective.is_distributed or objective.writes_batches or objective.differentiates:
        raise _UnsuitedError


class _UnsuitedError(Exception):
    """A way does not suit a model."""


def _batches(objective: Objective) -> list[Any]:
    """Return the batches, after the checks of a first evaluation."""
    objective.require_repeatable()
    return list(objective.passes())


def _mean(objective: Objective, losses: Sequence[Sequence[float]]) -> list[float]:
    """Return the weighted means over the batches, added like those of `Objective.value_at`."""
    found = []
    for column in zip(*losses, strict=True):
        parts = [weight * loss for weight, loss in zip(objective.data.weights, column, strict=True)]
        found.append(math.fsum(parts) if all(map(math.isfinite, parts)) else sum(parts))
    return found


def _in_place(
    objective: Objective, base: Tensor, direction: Tensor, places: Sequence[float], way: Way, at: Any
) -> list[float]:
    """Return the losses of a batch, with one vector in the model that is written for each point."""
    work = base.clone()
    leaves = objective.moved(work)
    if any(leaf.untyped_storage().data_ptr() != work.untyped_storage().data_ptr() for leaf in leaves):
        raise _UnsuitedError  # parameters of another dtype are copies

    def along(model: nn.Module, batch: Any) -> list[float]:
        modules = [*model.modules(), *(part for root in objective.reached.modules for part in root.modules())]
        buffers = [one for module in modules for one in module.buffers(recurse=False)]
        before, state = [one._version for one in buffers], ModuleState(modules, objective.reached.objects)
        found = []
        for place in places:
            torch.add(base, direction, alpha=place, out=work)
            found.append(objective.loss_fn(model, batch).detach().reshape(()))
            state.restore()
        if [one._version for one in buffers] != before:
            raise _UnsuitedError  # each point must find the buffers of the model
        return [float(one) for one in found]

    return list(objective.evaluated(objective.substitution(along), leaves, at))


def _in_blocks(
    objective: Objective, base: Tensor, direction: Tensor, places: Sequence[float], way: Way, at: Any
) -> list[float]:
    """Return the losses of a batch, some points at once."""
    like = objective.vector.tensors()

    def at_point(*leaves: Tensor) -> Tensor:
        found: Tensor = objective.evaluated(objective.call, objective.vector.placeable(leaves), at)
        return found.reshape(())

    found = []
    for some in np.array_split(np.asarray(places), math.ceil(len(places) / way.block)):
        rows = torch.stack([torch.add(base, direction, alpha=float(place)) for place in some])
        found.append(torch.func.vmap(at_point)(*shaped(rows, like)).detach())
    return [float(one) for one in torch.cat(found)]


def _point_bytes(objective: Objective) -> int:
    """Return the bytes of all tensors that one evaluation makes, with those of its parameters."""
    theta = objective.parameters()
    objective.require_repeatable()
    with objective.evaluating(), _Bytes() as made:
        objective.value_at(theta)
    return int(made.count)


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context in which the bytes of the results of all operations are added up, views of others left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operation and count."""
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor) and not one._is_view():
                self.count += one.numel() * one.element_size()
        return found
