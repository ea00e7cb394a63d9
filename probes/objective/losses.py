"""Losses that split into outputs and a loss of outputs, as Gauss-Newton and Fisher matrices require."""

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

    The terms of the mean are the rows of the outputs, `outputs.reshape(-1, C)` (samples, or tokens); a loss that
    ignores some of them also needs a method `terms(outputs, batch)`. Two methods are optional and return a function
    u -> S u of tensors shaped like the outputs: `hessian_of_outputs(outputs, batch)`, with S the Hessian with respect
    to the outputs, and `model_fisher(outputs, batch)`, with S their Fisher matrix if the loss is a negative
    log-likelihood.
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


@dataclass(frozen=True)
class CrossEntropy:
    """Mean softmax cross-entropy of `(inputs, labels)` batches, in nats, as a `loss_fn(model, batch)`.

    Logits have the classes on their last axis, `(..., C)`; labels are class indices of shape `(...)` or
    probabilities of shape `(..., C)`. The mean is over all leading axes (samples, or tokens); terms with the class
    index -100 are ignored, as in torch.

    For a model with another signature, subclass it and override `logits`, or pass any callable that returns the loss
    and has a method `logits(model, batch)`.
    """

    unit: ClassVar[str | None] = "nats"

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss, a 0-d tensor."""
        return self.of_outputs(self.outputs(model, batch), batch)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits, see `logits`."""
        return self.logits(model, batch)

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the mean loss of logits, a 0-d tensor."""
        labels = self.labels(batch)
        classes = outputs.shape[-1]
        flat = labels.reshape(-1, classes) if labels.is_floating_point() else labels.reshape(-1)
        return F.cross_entropy(outputs.reshape(-1, classes), flat)

    def terms(self, outputs: Tensor, batch: Any) -> int:
        """Return the number of terms of the mean: rows of logits that are not ignored."""
        return self.count(batch)

    def count(self, batch: Any) -> int:
        """Return the number of terms from the labels alone."""
        labels = self.labels(batch)
        return labels[..., 0].numel() if labels.is_floating_point() else int((labels != _IGNORED).sum())

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Hessian of `of_outputs`, as a function u -> S u of tensors shaped like the logits."""
        labels = self.labels(batch)
        mass = labels.sum(-1, keepdim=True) if labels.is_floating_point() else None  # of the probabilities, usually 1
        return self._curvature(outputs, batch, mass)

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Fisher matrix of the model's softmax, `(diag p - p p') / N` per term, as a function u -> F u."""
        return self._curvature(outputs, batch, None)

    def _curvature(self, outputs: Tensor, batch: Any, mass: Tensor | None) -> Callable[[Tensor], Tensor]:
        """Return the product with `(diag p - p p') / N` times the mass of each term; zero for ignored terms."""
        labels, p = self.labels(batch), outputs.softmax(-1)
        share = p / self.terms(outputs, batch)
        if mass is not None:
            share = share * mass
        if not labels.is_floating_point():
            share = share * (labels != _IGNORED)[..., None]
        return lambda u: share * (u - (p * u).sum(-1, keepdim=True))

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the logits `(..., C)` of the batch."""
        found = model(_pair(batch)[0])
        if not isinstance(found, Tensor):
            raise ProbeError(
                f"the model must return a tensor of logits (..., C), got {type(found).__name__}: "
                "subclass CrossEntropy and override logits(model, batch)"
            )
        return found

    def labels(self, batch: Any) -> Tensor:
        """Return the labels of the batch."""
        labels: Tensor = _pair(batch)[1]
        return labels


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
        found = model(_pair(batch)[0])
        if not isinstance(found, Tensor):
            raise ProbeError(
                f"the model must return a tensor, got {type(found).__name__}: "
                "subclass MeanSquaredError and override outputs(model, batch)"
            )
        return found

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the mean loss of predictions, a 0-d tensor."""
        targets = self.targets(batch)
        if targets.shape != outputs.shape:
            raise ProbeError(
                f"targets must have the shape of the outputs {tuple(outputs.shape)}, got {tuple(targets.shape)}: "
                "reshape one of them, as broadcasting would compare each with all"
            )
        return (outputs - targets).square().mean()  # mse_loss has a derivative without a forward-mode rule

    def hessian_of_outputs(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Hessian of `of_outputs`, `2 / (N C)` times the identity, as a function u -> S u."""
        share = 2 / outputs.numel()
        return lambda u: u * share

    def model_fisher(self, outputs: Tensor, batch: Any) -> Callable[[Tensor], Tensor]:
        """Return the Fisher matrix of the Gaussian with this loss as negative log-likelihood: the same matrix."""
        return self.hessian_of_outputs(outputs, batch)

    def targets(self, batch: Any) -> Tensor:
        """Return the targets of the batch."""
        targets: Tensor = _pair(batch)[1]
        return targets


_IGNORED = -100  # torch's ignore_index


def own_count(loss_fn: Any) -> Callable[[Any], float] | None:
    """Return the function with which a loss counts the terms of a batch, if it is known.

    Args:
        loss_fn: Any loss.

    Returns:
        `CrossEntropy.count`; None for another loss, and for a subclass that overrides the mean.
    """
    mine, kind = (CrossEntropy.__call__, CrossEntropy.of_outputs), type(loss_fn)
    if isinstance(loss_fn, CrossEntropy) and (kind.__call__, kind.of_outputs) == mine:
        return loss_fn.count
    return None


def rows(outputs: Tensor) -> Tensor:
    """Reshape outputs to one row per term of the mean.

    Args:
        outputs: `(..., C)`, or `(N,)`: N terms of one number each.

    Returns:
        `(N, C)`, a view where possible.
    """
    return outputs.reshape(-1, outputs.shape[-1] if outputs.ndim > 1 else 1)


def _pair(batch: Any) -> Any:
    """Return the batch after checking that it is a pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch
    got = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise ProbeError(
        f"a batch must be a pair (inputs, labels), got {got}: pass a list of pairs as batches, "
        "or a loss_fn(model, batch) of your own"
    )
