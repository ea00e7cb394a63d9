"""Optimizers to be recorded: one, several, or the one inside a wrapper of another library."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor
from torch.optim.optimizer import Optimizer

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.measures.host_transfer import Row
from lossscope.landscape.measures.optimizer_metric import optimizer_name

__all__ = ["RecordedOptimizer", "Together", "joint_name", "recorded_optimizers", "shared_settings"]

_HOOKS: Final = "_optimizer_step_pre_hooks"
_INSIDE: Final = ("optimizer", "_optimizer", "base_optimizer", "optim", "_optim")  # names of a wrapped optimizer
_SEVERAL: Final = ("optimizers", "_optimizers", "chained_optimizers")
_SETTINGS: Final = ("lr", "weight_decay")


@dataclass(frozen=True)
class RecordedOptimizer:
    """An optimizer, and all whose step hooks show its steps.

    A wrapper that takes steps of its own (SAM, Lookahead) is recorded as it is: the optimizer inside it is watched too,
    since `first_step()` and `second_step()` of a SAM call the inner step alone.
    """

    optimizer: Optimizer
    hooked: tuple[Optimizer, ...]

    @property
    def parameters(self) -> list[Tensor]:
        """Parameters of all groups."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]


def recorded_optimizers(given: object) -> tuple[RecordedOptimizer, ...]:
    """Return the optimizers behind an argument, each once.

    Args:
        given: A `torch.optim.Optimizer`, a list of them, or a wrapper that holds one in an attribute such as
            `optimizer` (Accelerate, Lightning, schedulers that own their optimizer).

    Raises:
        LandscapeError: There is none.
    """
    found = {id(one.optimizer): one for one in _found(given)}
    if not found:
        raise LandscapeError(
            f"optimizer must be a torch.optim.Optimizer, a list of them or a wrapper with an attribute 'optimizer', "
            f"got {type(given).__name__}"
        )
    return tuple(found.values())


def _found(given: object, depth: int = 0) -> Iterator[RecordedOptimizer]:
    """Yield the optimizers behind an object."""
    if depth > 8:
        return  # a wrapper that holds itself
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, list | tuple):
        for one in given:
            yield from recorded_optimizers(one)
        return
    inside = _inside(given)
    if isinstance(given, Optimizer) and _HOOKS in vars(given):  # its constructor has called that of torch
        inner = [one for part in inside if part is not given for one in _found(part, depth + 1)]
        if any(vars(one.optimizer)[_HOOKS] is vars(given)[_HOOKS] for one in inner):
            yield from inner  # a view of the inner optimizer, which shares its hooks
            return
        yield RecordedOptimizer(given, (given, *(hooked for one in inner for hooked in one.hooked)))
        return
    for part in inside:
        yield from _found(part, depth + 1)


def _inside(given: object) -> list[object]:
    """Return the optimizers that an object holds in an attribute."""
    for name in _INSIDE:
        held = getattr(given, name, None)
        if held is not None and held is not given and hasattr(held, "param_groups"):
            return [held]
    for name in _SEVERAL:
        held = getattr(given, name, None)
        if isinstance(held, list | tuple) and held and all(hasattr(one, "param_groups") for one in held):
            return list(held)
    return []


class Together:
    """Several optimizers saved as one: what a checkpoint needs of an optimizer."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the optimizers, in the order in which they were given to the recorder."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}


def joint_name(optimizers: Iterable[Optimizer]) -> str:
    """Return the names of optimizers, joined by a plus."""
    return "+".join(optimizer_name(optimizer) for optimizer in optimizers)


def shared_settings(groups: Sequence[Mapping[str, Any]]) -> tuple[Row, list[str]]:
    """Return learning rate and weight decay of parameter groups, and the names of the settings that no group has.

    A setting in which the groups with parameters differ is missing.
    """
    groups = [group for group in groups if group["params"]]
    found: Row = {}
    absent = []
    for name in _SETTINGS:
        values = {_number(group.get(name)) for group in groups}
        if values <= {None}:
            absent.append(name)
        elif len(values) == 1:
            found[name] = values.pop()
    return found, absent


def _number(value: Any) -> float | None:
    """Return a setting as a number; None if it is none."""
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
