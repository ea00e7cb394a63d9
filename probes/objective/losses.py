"""Losses in two parts, outputs and a loss of outputs, so that probes can see what the model predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError

__all__ = ["CrossEntropy", "MeanSquaredError", "SplitLoss", "own_count", "rows"]


@runtime_checkable
class SplitLoss(Protocol):
    """A `loss_fn(model, batch)` that is `of_outputs(outputs(model, batch), batch)`.

    The terms of the mean are the rows of the outputs, `outputs.reshape(-1, C)` (samples, or tokens); a loss that counts
    others, because it leaves some out, has a method `terms(outputs, batch)` besides. One that knows its own Hessian by
    the outputs may have `hessian_of_outputs(outputs, batch)`, and one that stands for a distribution its Fisher matrix
    `model_fisher(outputs, batch)`; both return a function u -> S u of tensors shaped like the outputs.
    """

    def __call__(self, model: Any, batch: Any, /) -> Tensor:
        """The mean loss, a 0-d tensor."""
        ...

    def outputs(self, model: Any, batch: Any, /) -> Tensor:
        """What the model predicts for the batch, `(..., C)`."""
        ...

    def of_outputs(self, outputs: Tensor, batch: Any, /) -> Tensor:
        """The mean loss of given outputs, a 0-d tensor."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """Mean softmax cross-entropy of `(inputs, labels)` batches, in nats, as a `loss_fn(model, batch)`.

    Logits have the classes on their last axis, `(..., C)`; labels are class numbers of shape `(...)` or
    probabilities of shape `(..., C)`. The mean is over all leading axes (samples, or tokens); the class number -100
    marks a term to leave out, as in torch.

    A model with another signature needs only another `logits`: subclass it, or pass any callable that
    has `logits(model, batch)` besides returning the loss.
    """

    unit: ClassVar[str | None] = "nats"

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss, a 0-d tensor."""
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """The logits, see `logits`."""
        return self.logits(model, batch)

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """The mean loss of logits, a 0-d tensor."""
        labels = self.labels(batch)
        classes = outputs.shape[-1]
        flat = labels.reshape(-1, classes) if labels.is_floating_point() else labels.reshape(-1)
        return F.cross_entropy(outputs.reshape(-1, classes), flat)

    def terms(self, outputs: Tensor, batch: Any) -> int:
        """Over how many terms the mean is taken: rows of logits, without those that are left out."""
        return self.count(batch)

    def count(self, batch: Any) -> int:
        """The same from the labels alone."""
        labels = self.labels(batch)
        return labels[..., 0].numel() if labels.is_floating_point() else int((labels != _LEFT_OUT).sum())

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """The Hessian of `of_outputs`, as a function u -> S u of tensors like the logits."""
        labels = self.labels(batch)
        mass = labels.sum(-1, keepdim=True) if labels.is_floating_point() else None  # of the probabilities, usually one
        return self._curvature(outputs, batch, mass)

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """The Fisher matrix of the model's own softmax, `(diag p - p p') / N` for each term, as a function u -> F u."""
        return self._curvature(outputs, batch, None)

    def _curvature(self, outputs: Tensor, batch: Any, mass: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The matrix `(diag p - p p') / N` of each term times its mass; zero for those that are left out."""
        labels, p = self.labels(batch), outputs.softmax(-1)
        share = p / self.terms(outputs, batch)
        if mass is not None:
            share = share * mass
        if not labels.is_floating_point():
            share = share * (labels != _LEFT_OUT)[..., None]
        return lambda u: share * (u - (p * u).sum(-1, keepdim=True))

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """The logits `(..., C)` of the batch."""
        found = model(_pair(batch)[0])
        if not isinstance(found, Tensor):
            raise ProbeError(
                f"the model returned {type(found).__name__}, need a tensor of logits (..., C): "
                "subclass CrossEntropy and override logits(model, batch)"
            )
        return found

    def labels(self, batch: Any) -> Tensor:
        """The labels of the batch."""
        labels: Tensor = _pair(batch)[1]
        return labels


@dataclass(frozen=True)
class MeanSquaredError:
    """Mean squared error of `(inputs, targets)` batches as a `loss_fn(model, batch)`: the mean over all entries.

    Outputs `(..., C)` are C numbers for each term, outputs `(N,)` one number for each; targets have their shape.
    """

    unit: ClassVar[str | None] = None  # the square of the unit of the targets

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss, a 0-d tensor."""
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """The predictions for the batch."""
        found = model(_pair(batch)[0])
        if not isinstance(found, Tensor):
            raise ProbeError(
                f"the model returned {type(found).__name__}, need a tensor: "
                "subclass MeanSquaredError and override outputs(model, batch)"
            )
        return found

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """The mean loss of predictions, a 0-d tensor."""
        targets = self.targets(batch)
        if targets.shape != outputs.shape:
            raise ProbeError(
                f"the targets have shape {tuple(targets.shape)} and the outputs {tuple(outputs.shape)}, need the same: "
                "reshape one of them, for broadcasting would compare each with all"
            )
        return (outputs - targets).square().mean()  # not mse_loss, whose derivative has no forward rule

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """The Hessian of `of_outputs`, `2 / (N C)` times the identity, as a function u -> S u."""
        share = 2 / outputs.numel()
        return lambda u: u * share

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """The Fisher matrix of the Gaussian whose variance makes this loss its likelihood: the same matrix."""
        return self.hessian_of_outputs(outputs, batch)

    def targets(self, batch: Any) -> Tensor:
        """The targets of the batch."""
        targets: Tensor = _pair(batch)[1]
        return targets


_LEFT_OUT = -100  # torch's ignore_index


def own_count(loss_fn: Any) -> Callable[[Any], float] | None:
    """How a loss counts the terms of a batch, where it is known.

    Args:
        loss_fn: Any loss.

    Returns:
        `CrossEntropy.count`; None for another loss, and for a subclass that takes its mean otherwise.
    """
    mine, kind = (CrossEntropy.__call__, CrossEntropy.of_outputs), type(loss_fn)
    if isinstance(loss_fn, CrossEntropy) and (kind.__call__, kind.of_outputs) == mine:
        return loss_fn.count
    return None


def rows(outputs: Tensor) -> Tensor:
    """Outputs as one row for each term of a mean.

    Args:
        outputs: `(..., C)`, or `(N,)`: N terms of one number each.

    Returns:
        `(N, C)`, a view where there can be one.
    """
    return outputs.reshape(-1, outputs.shape[-1] if outputs.ndim > 1 else 1)


def _pair(batch: Any) -> Any:
    """The batch, once it is known to be a pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch
    what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise ProbeError(
        f"a batch is a {what}, need a pair (inputs, labels): pass a list of pairs as batches, "
        "or a loss_fn(model, batch) of your own"
    )
