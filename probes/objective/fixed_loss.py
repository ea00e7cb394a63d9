"""Comparison of the loss on fixed data with the training loss, which batch norm in eval mode can set far apart."""

from __future__ import annotations

import copy
import math

from torch import nn

from lossscope.probes.objective.objective import Objective

__all__ = ["batch_norm_note"]

_FAR = 3  # ratio of the loss on the fixed data to the training loss from which the cause is sought


def batch_norm_note(objective: Objective, value: float, training_loss: float) -> str | None:
    """Return a sentence if running statistics of batch norm set the loss on fixed data far above the training loss.

    Early in training these statistics are not yet those of the data, and in eval mode the objective is then another
    function than the one that is trained. Whether that is the cause is measured: with the statistics of the batch
    itself the loss must come closer to the training loss by half of the distance or more.

    Args:
        objective: The objective; only one in eval mode whose model has running statistics is compared.
        value: Its loss.
        training_loss: Loss of a recent training batch.

    Returns:
        The sentence with its remedy; None if the losses are near each other, or apart for another reason. Cost: none,
        or the loss of one batch in both modes.
    """
    if objective.mode != "eval" or not any(map(_has_running_statistics, objective.model.modules())):
        return None
    if not (math.isfinite(value) and math.isfinite(training_loss) and value > _FAR * abs(training_loss)):
        return None
    part = objective.batch(0)
    frozen = copy.copy(part)
    frozen.mode = "frozen"
    try:
        own, fresh = part.value(), frozen.value()
    except Exception:  # a batch of one sample has no statistics of its own; the loss is of the user
        return None
    if not abs(fresh - training_loss) <= abs(own - training_loss) / 2:
        return None
    return (
        f"the loss on the fixed data is {value:.4g} in eval mode, by the running statistics of batch norm, and "
        f"{fresh:.4g} by those of its batch, near the training loss {training_loss:.4g}: curvature in eval mode is "
        "that of another function; pass Objective(..., mode='frozen'), or 'train'"
    )


def _has_running_statistics(module: nn.Module) -> bool:
    """Return True for a module that uses the statistics of its batch in train mode and running ones in eval mode."""
    return getattr(module, "running_mean", None) is not None
