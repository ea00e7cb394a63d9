"""Checks that a batch, its labels and the outputs of a model fit a loss; each raises one line that says what to do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError

__all__ = ["class_labels", "like", "pair", "require_in_range", "target_tensor", "tensor_output"]


def pair(batch: Any) -> Any:
    """Return the batch after checking that it is a pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch
    got = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise ProbeError(
        f"a batch must be a pair (inputs, labels), got {got}: pass a list of pairs as batches, "
        "or a loss_fn(model, batch) of your own"
    )


def target_tensor(batch: Any) -> Tensor:
    """Return the targets of a pair after checking that they are a tensor."""
    targets = pair(batch)[1]
    if not isinstance(targets, Tensor):
        raise ProbeError(f"targets must be a tensor, got {type(targets).__name__}: convert them")
    return targets


def tensor_output(found: Any, name: str) -> Tensor:
    """Return the output of a model after checking that it is a tensor."""
    if not isinstance(found, Tensor):
        raise ProbeError(
            f"the model must return a tensor, got {type(found).__name__}: "
            f"subclass {name} and override outputs(model, batch)"
        )
    return found


def like(targets: Tensor, outputs: Tensor) -> Tensor:
    """Return targets after checking that they have the shape of the outputs."""
    if targets.shape != outputs.shape:
        raise ProbeError(
            f"targets must have the shape of the outputs {tuple(outputs.shape)}, got {tuple(targets.shape)}: "
            "reshape one of them, as broadcasting would compare each with all"
        )
    return targets.to(outputs.dtype) if targets.dtype == torch.bool else targets


def class_labels(
    labels: Tensor, shape: tuple[int, ...], *, weight: Tensor | None, class_axis: int | None, ignore_index: int
) -> Tensor:
    """Return labels as `(N,)` int64 or `(N, C)` after checking that they fit logits with the classes last.

    Args:
        labels: Class indices, or probabilities of a floating dtype.
        shape: Shape of the logits, `(..., C)`.
        weight: Weight of each class, if there is one.
        class_axis: Axis of the classes in the model's output; None if it was not given.
        ignore_index: Class index of terms that are left out.

    Raises:
        ProbeError: They do not fit.
    """
    if not shape or shape[-1] < 2:
        raise ProbeError(
            f"logits must have at least 2 classes on their last axis, got {shape}: use BinaryCrossEntropy() for "
            "one logit, or class_axis=1 if the classes are there"
        )
    if weight is not None and len(weight) != shape[-1]:
        raise ProbeError(f"weight must have one entry for each of {shape[-1]} classes, got {len(weight)}")
    if labels.is_floating_point():
        return _probabilities(labels, shape, class_axis)
    _require_fitting(tuple(labels.shape), shape, class_axis)
    require_in_range(labels, shape[-1], ignore_index, weighted=weight is not None)
    return labels.reshape(-1).long()


def _probabilities(labels: Tensor, shape: tuple[int, ...], class_axis: int | None) -> Tensor:
    """Return labels that are probabilities as `(N, C)`."""
    if class_axis not in (None, -1) and labels.ndim == len(shape):
        labels = labels.movedim(class_axis, -1)
    elif class_axis is None and len(shape) > 2 and _sums_to_one(labels, 1) and not _sums_to_one(labels, -1):
        raise ProbeError("the labels are probabilities along axis 1, not along the last axis: pass class_axis=1")
    if tuple(labels.shape) != shape and labels.numel() != math.prod(shape):
        raise ProbeError(
            f"labels of floating dtype are probabilities and must have the shape of the logits {shape}, got "
            f"{tuple(labels.shape)}: class indices are integers, labels.long()"
        )
    return labels.reshape(-1, shape[-1])


def _require_fitting(labels: tuple[int, ...], logits: tuple[int, ...], class_axis: int | None) -> None:
    """Raise if class indices do not fit logits with the classes last."""
    rows, ends = logits[:-1], (logits[:1] + logits[2:])
    flat = len(logits) == 2 and math.prod(labels) == logits[0]  # a model may flatten samples and tokens
    fits_last = labels == rows or labels == (*rows, 1) or flat
    fits_first = len(logits) > 2 and labels == ends
    if fits_last and fits_first and class_axis is None:
        raise ProbeError(
            f"labels {labels} fit logits {logits} with the classes on axis 1 and on the last: pass "
            "CrossEntropy(class_axis=1), which is torch's convention, or class_axis=-1"
        )
    if fits_last:
        return
    known = class_axis not in (None, -1)
    remedy = "pass CrossEntropy(class_axis=1)" if fits_first and not known else "reshape one of them"
    if labels == logits:
        remedy = "pass class indices, or probabilities as floats"
    raise ProbeError(
        f"labels must have the shape {rows} of the logits {logits} without classes, got {labels}: {remedy}"
    )


def require_in_range(labels: Tensor, classes: int, ignore_index: int, *, weighted: bool = False) -> None:
    """Raise if a class index is neither a class, of which there may be weights, nor ignored."""
    wrong = labels[((labels < 0) | (labels >= classes)) & (labels != ignore_index)]
    if wrong.numel():
        short = f"; weight has {classes} entries and must have one for each class" if weighted else ""
        raise ProbeError(
            f"labels must be in 0 to {classes - 1} or {ignore_index}, got {int(wrong[0])}: pass "
            f"ignore_index={int(wrong[0])} if such terms are left out, or correct them{short}"
        )


def _sums_to_one(labels: Tensor, axis: int) -> bool:
    """Return True if labels are probabilities along an axis."""
    return labels.ndim > 1 and bool(((labels.sum(axis) - 1).abs() < 1e-2).all())
