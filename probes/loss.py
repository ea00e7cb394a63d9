"""Losses that show their logits, so that probes can see what the model predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError

__all__ = ["CrossEntropy"]


@dataclass(frozen=True)
class CrossEntropy:
    """Mean softmax cross-entropy of `(inputs, labels)` batches, in nats, as a `loss_fn(model, batch)`.

    Logits have the classes on their last axis, `(..., C)`; labels are class numbers of shape `(...)` or
    probabilities of shape `(..., C)`. The mean is over all leading axes (samples, or tokens).

    A model with another signature needs only another `logits`: subclass it, or pass any callable that
    has `logits(model, batch)` besides returning the loss.
    """

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss, a 0-d tensor."""
        logits, labels = self.logits(model, batch), self.labels(batch)
        flat = labels.reshape(-1, logits.shape[-1]) if labels.is_floating_point() else labels.reshape(-1)
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), flat)

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


def _pair(batch: Any) -> Any:
    """The batch, once it is known to be a pair."""
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch
    what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
    raise ProbeError(
        f"a batch is a {what}, need a pair (inputs, labels): pass a list of pairs as batches, "
        "or a loss_fn(model, batch) of your own"
    )
