"""One batch on its way through an evaluation of an objective, and what its loss must be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.isolation import random_modules

__all__ = ["ULPS", "BatchEvaluation", "BatchGradient", "check_deterministic", "validated_loss"]

ULPS: Final = 100  # two evaluations of one loss may differ by this many units in the last place


@dataclass(frozen=True)
class BatchEvaluation:
    """One batch on its way through an evaluation."""

    index: int  # of the batch
    weight: float  # share of the batch in the mean
    where: str  # the batch in words
    buffers: dict[str, Tensor]  # where the model's buffers stand in train mode; used up by the evaluation
    before: float | None  # the loss that an earlier evaluation gave, where the two are to be compared
    slack: float  # by how much they may differ


@dataclass(frozen=True)
class BatchGradient:
    """The gradient of one batch's loss, with its graph where one was asked for."""

    weight: float  # share of the batch in the mean
    theta: Tensor  # (n,), the leaf of the graph: the parameters
    gradient: Tensor  # (n,), zero where the loss does not contain a parameter


def validated_loss(loss: Any, at: BatchEvaluation, model: nn.Module) -> Tensor:
    """The loss of a batch as a 0-d tensor, once it is known to be one finite number and the same as before.

    Args:
        loss: What the loss function returned.
        at: The batch.
        model: Where to look for modules that draw random numbers.

    Returns:
        The loss.

    Raises:
        ProbeError: it is no real scalar, not finite, or differs from the evaluation before.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        what = f"{loss.dtype} of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ProbeError(f"loss_fn returned {what} {at.where}, need one real number: return the mean over the batch")
    if not math.isfinite(number := float(loss.detach())):
        raise ProbeError(f"the loss is {number} {at.where}: nothing can be measured at these parameters")
    check_deterministic(number, at, model)
    return loss.reshape(())


def check_deterministic(number: float, at: BatchEvaluation, model: nn.Module) -> None:
    """Refuse a loss that differs from the one before.

    Args:
        number: The loss.
        at: The batch.
        model: Where to look for modules that draw random numbers.

    Raises:
        ProbeError: it differs by more than the slack.
    """
    if at.before is None or abs(number - at.before) <= at.slack:
        return
    active = random_modules(model)
    cause = f"{', '.join(active[:3])} is active" if active else "loss_fn or the model draws random numbers"
    raise ProbeError(
        f"two evaluations of one loss gave {at.before:.9g} and {number:.9g} {at.where}, more than {ULPS} units in "
        f"the last place apart: {cause}; use mode='eval', or take the randomness out"
    )
