"""Checks of a recorder's arguments before anything is written or hooked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lossscope.landscape.errors import LandscapeError

if TYPE_CHECKING:
    from lossscope.probes.objective.objective import Objective

__all__ = ["check_model", "one_number"]


def check_model(model: nn.Module, *objectives: Objective | None) -> None:
    """Check that a model can be recorded.

    Raises:
        LandscapeError: The model has no trainable parameters, they are sharded, or an objective is of others.
    """
    if not isinstance(model, nn.Module):
        raise LandscapeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    trainable = {p for p in model.parameters() if p.requires_grad}
    if not trainable:
        raise LandscapeError(
            f"{type(model).__name__} has no parameter with requires_grad=True, so there is nothing to record"
        )
    sharded = next((name for name, p in model.named_parameters() if _is_sharded(p)), None)
    if sharded is not None:
        raise LandscapeError(
            f"parameter {sharded!r} is a shard of a DTensor (FSDP2, tensor parallelism), and only whole parameters can "
            "be recorded: record a replica on one device or under DistributedDataParallel"
        )
    for objective in objectives:
        parameters = dict(objective.model.named_parameters()) if objective is not None else {}
        for name in objective.names if objective is not None else ():
            if parameters.get(name) not in trainable:
                raise LandscapeError(
                    f"the objective's parameter {name!r} is not one of the {len(trainable)} trainable parameters "
                    "of the recorded model: create the objective of this model, after freezing what is not trained"
                )


def _is_sharded(parameter: Tensor) -> bool:
    """Return True for a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported: no DTensor exists without it
    return module is not None and isinstance(parameter, module.DTensor)


def one_number(name: str, value: object) -> Tensor | float | None:
    """Return a value as a 0-d tensor or a float.

    Raises:
        LandscapeError: It is not one real number.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        if value.numel() == 1 and not value.is_complex():
            return value.detach().reshape(())
        raise LandscapeError(f"{name} must be one real number, got a tensor of shape {tuple(value.shape)}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise LandscapeError(f"{name} must be one real number, got {type(value).__name__}") from None
    return number
