"""Terms of the mean of any loss: how they are counted, what share each has, and what the loss is called in rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    MeanSquaredError,
    override_depth,
    rows,
)

__all__ = [
    "averaging_shares",
    "class_logits",
    "counts_exactly",
    "own_count",
    "row_shares",
    "settings_in_words",
]

_MOST_WEIGHTS: Final = 8  # class weights that are written out in names


def own_count(loss_fn: Any) -> Callable[[Any], float] | None:
    """Return the function with which a loss counts the terms of a batch, if it is known.

    Args:
        loss_fn: Any loss.

    Returns:
        Its method `count`; None for a loss without one, and for a subclass that overrides the mean alone.
    """
    counted = override_depth(loss_fn, "count")
    if math.isinf(counted) or counted > min(override_depth(loss_fn, "__call__"), override_depth(loss_fn, "of_outputs")):
        return None
    count: Callable[[Any], float] = loss_fn.count
    return count


def counts_exactly(loss_fn: Any, batches: Iterable[Any]) -> bool:
    """Return True for a loss whose own count makes batches add up to the mean over all terms, whatever the model.

    Args:
        loss_fn: Any loss.
        batches: The batches.

    Returns:
        True for the losses of lossscope and their subclasses with the same mean, but not for `HuggingFaceLoss`, whose
        mean is the model's, nor for squared errors with rows of several lengths.
    """
    ready = (CrossEntropy, BinaryCrossEntropy, MeanSquaredError)
    kind = next((kind for kind in ready if isinstance(loss_fn, kind)), None)
    if kind is None or any(
        getattr(type(loss_fn), name) is not getattr(kind, name) for name in ("__call__", "of_outputs", "count")
    ):
        return False
    if not isinstance(loss_fn, MeanSquaredError):
        return True
    return len({targets.shape[1:][-1:] for targets in map(loss_fn.targets, batches)}) == 1


def settings_in_words(loss_fn: Any) -> str:
    """Return the settings of one of these losses that differ from the defaults: two losses have two names in rows.

    Args:
        loss_fn: Any loss.

    Returns:
        `(ignore_index=255)`, say; empty for defaults, and for any other loss. A long weight is shortened to its sum.
    """
    if not isinstance(loss_fn, CrossEntropy | BinaryCrossEntropy):
        return ""
    found = [(f.name, getattr(loss_fn, f.name), f.default) for f in fields(loss_fn)]
    words = [f"{name}={_written(x)}" for name, x, usual in found if isinstance(x, Tensor) or x != usual]
    return f"({', '.join(words)})" if words else ""


def _written(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{value:g}"
    if value.numel() > _MOST_WEIGHTS:
        return f"{value.numel()} weights of sum {float(value.double().sum()):.9g}"
    return "[" + ", ".join(f"{x:g}" for x in value.reshape(-1).tolist()) + "]"


def class_logits(loss_fn: Any) -> Callable[[Any, Any], Tensor] | None:
    """Return the function of model and batch that gives the logits of a loss, with the classes last.

    Args:
        loss_fn: Any loss.

    Returns:
        `outputs` of a cross-entropy, the method `logits` of another loss, None if it has none.
    """
    if isinstance(loss_fn, CrossEntropy):
        return loss_fn.outputs
    logits: Callable[[Any, Any], Tensor] | None = getattr(loss_fn, "logits", None)
    return logits


def row_shares(loss: Any, outputs: Tensor, batch: Any) -> Tensor:
    """Return the share of each row of the outputs in the mean of a loss.

    Args:
        loss: The loss; its method `shares`, or else `terms`, is read, and without them all rows count alike.
        outputs: `(..., C)`.
        batch: The batch.

    Returns:
        `(N,)` float64. With `terms` alone every row has the share 1 / terms: those that are ignored have no gradient.

    Raises:
        ProbeError: the shares do not fit the rows, or are negative.
    """
    count = len(rows(outputs))
    if hasattr(loss, "shares"):
        found = torch.as_tensor(loss.shares(outputs, batch)).to(outputs.device, torch.float64).reshape(-1)
        if len(found) != count or not bool((found >= 0).all()):
            raise ProbeError(f"shares must be {count} numbers, one for each row of the outputs, none negative")
        return found
    terms = loss.terms(outputs, batch) if hasattr(loss, "terms") else count
    return torch.full((count,), 1 / terms, dtype=torch.float64, device=outputs.device)


def averaging_shares(loss: Any, outputs: Tensor, batch: Any) -> Tensor:
    """Return the weights with which a number of each row of logits is averaged as the loss averages its terms.

    Args:
        loss: The loss; without a method `shares`, the rows whose class index in `labels(batch)`, if it has that method,
            is -100 are left out, and all others count alike.
        outputs: Logits `(..., C)`.
        batch: The batch.

    Returns:
        `(N,)` float64; they sum to 1.
    """
    if hasattr(loss, "shares"):
        return row_shares(loss, outputs, batch)
    count = len(rows(outputs))
    labels = loss.labels(batch) if hasattr(loss, "labels") else None
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel() == count:
        counted = (labels.reshape(-1) != CrossEntropy.ignore_index).to(outputs.device, torch.float64)
        return counted / counted.sum()
    return torch.full((count,), 1 / count, dtype=torch.float64, device=outputs.device)
