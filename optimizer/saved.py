"""Whether a saved state is one that this optimizer would have saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.update.state import OF_ASCENT

if TYPE_CHECKING:
    from lossscope.optimizer.base import Ascending

__all__ = ["RULE", "refuse_foreign_state"]

RULE: Final = "rule"  # under which a state says what saved it


def refuse_foreign_state(optimizer: Ascending, saved: Mapping[str, Any]) -> None:
    """Raise an error for the state of another rule or of other parameters, before anything of it is loaded.

    A state from before rules were saved with it, or of an optimizer of torch, is known by the tensors that it keeps.

    Args:
        optimizer: Into which it is to be loaded.
        saved: What `state_dict()` gave.

    Raises:
        OptimizerError: It is another's.
    """
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        raise OptimizerError("that is not the state of an optimizer: load what its state_dict() gave")
    said = saved.get(RULE, optimizer.rule)
    if said != optimizer.rule:
        raise OptimizerError(
            f"the state was saved by an optimizer that steps by {said!r} and this one steps by {optimizer.rule!r}; "
            f"load it into one of {said!r}"
        )
    for name, found, expected, shape in _tensors(optimizer, saved):
        optional = optimizer.optional_state
        if not expected.keys() - optional <= found.keys() <= expected.keys() | optional | OF_ASCENT:
            raise OptimizerError(
                f"the state is not one of {optimizer.rule!r}: of {name} it has {_listed(found)}, and here that is "
                f"{_listed(expected)}; load it into an optimizer of the kind that saved it"
            )
        for key, value in found.items():
            own = expected[key].shape if key in expected else shape
            if isinstance(value, Tensor) and value.shape != own:
                raise OptimizerError(
                    f"the state is of other parameters: of {name} its {key} has the shape {tuple(value.shape)} and not "
                    f"{tuple(own)}; load it into an optimizer of the model that it was saved with"
                )


def _tensors(
    optimizer: Ascending, saved: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any], torch.Size]]:
    """Each parameter with what is saved of it, what would be, without its memory, and its shape."""
    # torch compares the numbers of groups and of parameters, and says so
    for theirs, ours in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        settings = {**ours, **{key: value for key, value in theirs.items() if key != "params"}}
        names = ours.get("param_names") or [f"parameter {i}" for i in theirs["params"]]
        for name, index, parameter in zip(names, theirs["params"], ours["params"], strict=False):
            if state := saved["state"].get(index):
                yield name, state, optimizer.fresh_state(settings, parameter.detach().to("meta")), parameter.shape


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
