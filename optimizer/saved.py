"""Whether a saved state is one that this optimizer would have saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.state import OF_ASCENT

if TYPE_CHECKING:
    from lossscope.optimizer.ascending import Ascending

__all__ = ["RULE", "refuse_foreign_state"]

RULE: Final = "rule"  # under which a state says what saved it


def refuse_foreign_state(optimizer: Ascending, saved: Mapping[str, Any]) -> None:
    """Raise an error for the state of another rule, before anything of it is loaded.

    A state from before rules were saved with it, or of an optimizer of torch, is known by the tensors that it keeps.

    Args:
        optimizer: Into which it is to be loaded.
        saved: What `state_dict()` gave.

    Raises:
        OptimizerError: It is another's.
    """
    said = saved.get(RULE, optimizer.rule)
    if said != optimizer.rule:
        raise OptimizerError(
            f"the state was saved by an optimizer that steps by {said!r} and this one steps by {optimizer.rule!r}; "
            f"load it into one of {said!r}"
        )
    for name, found, expected in _tensors(optimizer, saved):
        optional = optimizer.optional_state
        if not expected - optional <= found <= expected | optional | OF_ASCENT:
            raise OptimizerError(
                f"the state is not one of {optimizer.rule!r}: of {name} it has {_listed(found)}, and here that is "
                f"{_listed(expected)}; load it into an optimizer of the kind that saved it"
            )


def _tensors(optimizer: Ascending, saved: Mapping[str, Any]) -> Iterator[tuple[str, set[str], set[str]]]:
    """Each parameter with the names of what is saved of it and of what would be."""
    # torch compares the numbers of groups and of parameters, and says so
    for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        settings = {**ours, **{key: value for key, value in theirs.items() if key != "params"}}
        names = ours.get("param_names") or [f"parameter {i}" for i in theirs["params"]]
        for name, index, parameter in zip(names, theirs["params"], ours["params"], strict=False):
            if state := saved["state"].get(index):
                yield name, set(state), _names_of(optimizer, settings, parameter)


def _names_of(optimizer: Ascending, settings: dict[str, Any], parameter: Tensor) -> set[str]:
    """The names of a parameter's state, without its memory."""
    return set(optimizer.fresh_state(settings, parameter.detach().to("meta")))


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
