"""Losses that split into outputs and a loss of outputs, as Gauss-Newton and Fisher matrices require."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.loss_checks import (
    class_labels,
    like,
    pair,
    require_in_range,
    target_tensor,
    tensor_output,
)

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "MeanSquaredError",
    "SplitLoss",
    "override_depth",
    "rows",
]


_TORCHS: Final = -100  # torch's ignore_index


@runtime_checkable
class SplitLoss(Protocol):
    """A `loss_fn(model, batch)` that is `of_outputs(outputs(model, batch), batch)`.

    The terms of the mean are the rows of the outputs, `outputs.reshape(-1, C)` (samples, or tokens). A loss that
    ignores some of them, or weighs them, also needs a method `shares(outputs, batch)` that returns the share of each
    row in the mean, `(N,)`; `terms(outputs, batch)`, their number, is enough if the others are ignored. A method
    `count(batch)` returns the weight of a batch. Two more are optional and return a function u -> S u of tensors shaped
    like the outputs: `hessian_of_outputs(outputs, batch)`, with S the Hessian with respect to the outputs, and
    `model_fisher(outputs, batch)`, with S their Fisher matrix if the loss is a negative log-likelihood.
    """

    def __call__(self, model: Any, batch: Any, /) -> Tensor:
        """Return the mean loss, a 0-d tensor."""
        ...

    def outputs(self, model: Any, batch: Any, /) -> Tensor:
        """Return the model's predictions for the batch, `(..., C)`."""
        ...

    def of_outputs(self, outputs: Tensor, batch: Any, /) -> Tensor:
        """Return the mean loss of given outputs, a 0-d tensor."""
        ...


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Mean softmax cross-entropy of `(inputs, labels)` batches, in nats, as a `loss_fn(model, batch)`.

    Logits have the classes on their last axis, `(..., C)`, unless `class_axis` says otherwise; labels are class
    indices of shape `(...)` or probabilities of the shape of the logits. The mean is over all other axes (samples, or
    tokens), as in `torch.nn.functional.cross_entropy`; a batch weighs as much as the sum that its mean is divided by.

    For a model with another signature, subclass it and override `logits`, or pass any callable that returns the loss
    and has a method `logits(model, batch)`.

    Args:
        weight: Weight of each class, `(C,)`; a mean over class indices is divided by the sum of their weights.
        ignore_index: Class index of terms that are left out.
        label_smoothing: Share of each label that is spread over all classes, in [0, 1].
        class_axis: Axis of the classes in the model's output: -1 or 1, as in `(N, C, H, W)`. Default: the last,
            after checking that the labels do not fit axis 1 as well.

    Raises:
        ProbeError: a setting is out of range. A batch raises it if its labels do not fit the logits.
    """

    weight: Tensor | None = None
    ignore_index: int = _TORCHS
    label_smoothing: float = 0.0
    class_axis: int | None = None

    unit: ClassVar[str | None] = "nats"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 <= self.label_smoothing <= 1:
            raise ProbeError(f"label_smoothing must be in [0, 1], got {self.label_smoothing}")
        for name, index in (("ignore_index", self.ignore_index), ("class_axis", self.class_axis)):
            if isinstance(index, bool) or not (isinstance(index, int) or (index is None and name == "class_axis")):
                raise ProbeError(f"{name} must be an integer, got {index!r}")
        if self.weight is not None and not (
            isinstance(self.weight, Tensor)
            and self.weight.ndim == 1
            and self.weight.is_floating_point()
            and bool(((self.weight >= 0) & self.weight.isfinite()).all())
        ):
            raise ProbeError("weight must be a floating tensor (C,) of finite numbers, none negative")

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss, a 0-d tensor."""
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits with the classes last, see `logits`."""
        found = self.logits(model, batch)
        if self.class_axis in (None, -1) or not isinstance(found, Tensor):
            return found
        if not -found.ndim <= self.class_axis < found.ndim:
            raise ProbeError(f"class_axis {self.class_axis} is not among the axes of logits {tuple(found.shape)}")
        return found.movedim(self.class_axis, -1)

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the mean loss of logits with the classes last, a 0-d tensor."""
        flat = self._labels(outputs, batch)
        weight = None if self.weight is None else self.weight.to(outputs)
        return F.cross_entropy(
            outputs.reshape(-1, outputs.shape[-1]),
            flat,
            weight=weight,
            ignore_index=_TORCHS if flat.is_floating_point() else self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def terms(self, outputs: Tensor, batch: Any) -> int:
        """Return the number of terms of the mean: rows of logits that are not ignored."""
        return int((self.shares(outputs, batch) > 0).sum())

    def count(self, batch: Any) -> float:
        """Return the sum that the mean is divided by, from the labels alone: terms, or the weights of their classes."""
        labels = self.labels(batch)
        if labels.is_floating_point():
            classes = labels.shape[-1 if self.class_axis is None else self.class_axis]
            return labels.numel() // classes if classes else 0
        counted = labels[labels != self.ignore_index]
        if self.weight is None:
            return counted.numel()
        require_in_range(labels, len(self.weight), self.ignore_index, weighted=True)
        return float(self.weight.to(counted.device, torch.float64)[counted.long()].sum())

    def shares(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the share of each row of logits in the mean, `(N,)` float64; 0 for ignored ones.

        For a subclass with another `of_outputs` they are measured: the Hessian of a mean of cross-entropies by the
        logits is the share of a row times `diag p - p p'`.
        """
        if override_depth(self, "of_outputs") < override_depth(self, "shares"):
            return _measured_shares(self, outputs, batch)
        labels = self._labels(outputs, batch)
        if labels.is_floating_point():
            return torch.full((len(labels),), 1 / len(labels), dtype=torch.float64, device=outputs.device)
        counted = labels != self.ignore_index
        if self.weight is None:
            parts = counted.double()
        else:
            parts = self.weight.to(labels.device, torch.float64)[labels.where(counted, 0)] * counted
        return parts / parts.sum()

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Hessian of `of_outputs`, as a function u -> S u of tensors shaped like the logits."""
        labels, classes = self._labels(outputs, batch), outputs.shape[-1]
        w = torch.ones(classes).to(outputs) if self.weight is None else self.weight.to(outputs)
        smooth = self.label_smoothing
        if labels.is_floating_point():
            mass = (w * (labels * (1 - smooth) + smooth / classes)).sum(-1) / len(labels)
        else:
            counted = labels != self.ignore_index
            own = w[labels.where(counted, 0)] * counted
            mass = ((1 - smooth) * own + smooth * w.mean() * counted) / own.sum()
        return self._curvature(outputs, mass)

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Fisher matrix of the model's softmax, as a function u -> F u.

        It is the sum over the rows of `diag p - p p'` times the row's share in the mean.
        """
        return self._curvature(outputs, self.shares(outputs, batch).to(outputs))

    def _curvature(self, outputs: Tensor, mass: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the product with `diag p - p p'` times the mass of each row, `(N,)`."""
        p = outputs.softmax(-1)
        share = p * mass.reshape(outputs.shape[:-1])[..., None]
        return lambda u: share * (u - (p * u).sum(-1, keepdim=True))

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits of the batch as the model returns them, classes on `class_axis`."""
        found = model(pair(batch)[0])
        if not isinstance(found, Tensor):
            hint = ", or use HuggingFaceLoss()" if hasattr(found, "logits") else ""
            raise ProbeError(
                f"the model must return a tensor of logits (..., C), got {type(found).__name__}: "
                f"subclass CrossEntropy and override logits(model, batch){hint}"
            )
        return found

    def labels(self, batch: Any) -> Tensor:
        """Return the labels of the batch."""
        labels: Tensor = pair(batch)[1]
        if not isinstance(labels, Tensor):
            raise ProbeError(f"labels must be a tensor, got {type(labels).__name__}: convert them")
        return labels

    def _labels(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the labels as `(N,)` int64 or `(N, C)` after checking that they fit logits with the classes last."""
        return class_labels(
            self.labels(batch),
            tuple(outputs.shape),
            weight=self.weight,
            class_axis=self.class_axis,
            ignore_index=self.ignore_index,
        )


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared error of `(inputs, targets)` batches as a `loss_fn(model, batch)`: the mean over all entries.

    Outputs `(..., C)` have C numbers per term, outputs `(N,)` have one; targets have the same shape.
    """

    unit: ClassVar[str | None] = None  # the square of the unit of the targets

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss, a 0-d tensor."""
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the predictions for the batch."""
        return tensor_output(model(pair(batch)[0]), "MeanSquaredError")

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the mean loss of predictions, a 0-d tensor."""
        targets = like(self.targets(batch), outputs)
        return (outputs - targets).square().mean()  # mse_loss has a derivative without a forward-mode rule

    def count(self, batch: Any) -> float:
        """Return the number of terms, rows of the targets."""
        targets = self.targets(batch)
        return targets.numel() / targets.shape[-1] if targets.ndim > 1 and targets.shape[-1] else targets.numel()

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Hessian of `of_outputs`, `2 / (N C)` times the identity, as a function u -> S u."""
        share = 2 / outputs.numel()
        return lambda u: u * share

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Fisher matrix of the Gaussian with this loss as negative log-likelihood: the same matrix."""
        return self.hessian_of_outputs(outputs, batch)

    def targets(self, batch: Any) -> Tensor:
        """Return the targets of the batch."""
        return target_tensor(batch)


@dataclass(frozen=True, eq=False)
class BinaryCrossEntropy:
    """Mean binary cross-entropy of `(inputs, targets)` batches, in nats, as a `loss_fn(model, batch)`.

    The model returns logits of any shape (one per sample, several labels per sample, a mask); targets have the same
    shape and are 0 or 1, or probabilities. Each logit is a term of the mean, as in
    `torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        pos_weight: Weight of the positive class, a number or one for each entry of the last axis of the logits.

    Raises:
        ProbeError: a batch raises it if its targets have another shape or are out of range.
    """

    pos_weight: Tensor | float | None = None

    unit: ClassVar[str | None] = "nats"

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss, a 0-d tensor."""
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits with an axis of length 1 added: a row for each term."""
        return tensor_output(model(pair(batch)[0]), "BinaryCrossEntropy")[..., None]

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the mean loss of logits, a 0-d tensor."""
        z = outputs[..., 0]
        y = self._labels(z, batch)
        return (self._positive(z) * y * F.softplus(-z) + (1 - y) * F.softplus(z)).mean()

    def count(self, batch: Any) -> float:
        """Return the number of terms, entries of the targets."""
        return self.targets(batch).numel()

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Hessian of `of_outputs`, which is diagonal, as a function u -> S u."""
        z = outputs[..., 0]
        y = self._labels(z, batch)
        share = ((self._positive(z) * y + 1 - y) * z.sigmoid() * (-z).sigmoid() / z.numel())[..., None]
        return lambda u: share * u

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Fisher matrix of the model's independent Bernoulli variables, `p (1 - p) / N` for each term."""
        share = outputs.sigmoid() * (-outputs).sigmoid() / outputs.numel()
        return lambda u: share * u

    def targets(self, batch: Any) -> Tensor:
        """Return the targets of the batch."""
        return target_tensor(batch)

    def _positive(self, z: Tensor) -> Tensor:
        """Return the weight of the positive class as a tensor that broadcasts over logits."""
        return torch.as_tensor(1.0 if self.pos_weight is None else self.pos_weight).to(z)

    def _labels(self, z: Tensor, batch: Any) -> Tensor:
        """Return the targets in the dtype of the logits after checking them."""
        targets = like(self.targets(batch), z).to(z.dtype)
        if bool(((targets < 0) | (targets > 1)).any()):
            raise ProbeError(
                f"targets must be in [0, 1], got {float(targets.min()):g} to {float(targets.max()):g}: use 0 and 1"
            )
        return targets


def override_depth(thing: Any, name: str) -> float:
    """Return the position in the method resolution order where a method is defined; infinity if it is not."""
    found = (depth for depth, kind in enumerate(type(thing).__mro__) if name in vars(kind))
    return next(found, math.inf)


def rows(outputs: Tensor) -> Tensor:
    """Reshape outputs to one row per term of the mean.

    Args:
        outputs: `(..., C)`, or `(N,)`: N terms of one number each.

    Returns:
        `(N, C)`, a view where possible.
    """
    return outputs.reshape(-1, outputs.shape[-1] if outputs.ndim > 1 else 1)


def _measured_shares(loss: CrossEntropy, outputs: Tensor, batch: Any) -> Tensor:
    """Return the share of each row in the mean from the Hessian by the logits, where all classes are equally likely."""
    classes = outputs.shape[-1]
    with torch.enable_grad():
        z = torch.zeros_like(outputs.detach(), dtype=torch.float64).requires_grad_()
        slope = torch.autograd.grad(loss.of_outputs(z, batch), z, create_graph=True)[0]
        first = torch.zeros_like(z)
        first[..., 0] = 1
        curved = torch.autograd.grad(slope, z, first)[0] if slope.requires_grad else first
    curved = curved.reshape(-1, classes)
    found = curved[:, 0] / curved[:, 0].sum()
    even = torch.allclose(curved[:, 1:], -curved[:, :1] / (classes - 1), rtol=1e-4, atol=1e-12)
    if not even or not bool((found >= 0).all()):
        raise ProbeError(
            f"{type(loss).__name__} overrides of_outputs, which is no weighted mean of cross-entropies: give it a "
            "method shares(outputs, batch) that returns the share of each row of logits in the mean"
        )
    return found
