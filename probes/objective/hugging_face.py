"""Loss of Hugging Face models, which compute it from a batch with labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy

__all__ = ["HuggingFaceLoss"]


@dataclass(frozen=True, eq=False)
class HuggingFaceLoss(CrossEntropy):
    """The loss that a Hugging Face model computes from a batch with `labels`, averaged over its label tokens.

    The value is `model(**batch).loss`; a batch weighs as many tokens as it has labels that are not `ignore_index`, so
    padded batches add up to the mean over all tokens. `logits` and Gauss-Newton read `model(**batch).logits`, and raise
    if their mean cross-entropy is not that loss.

    Args:
        shift: True for causal language models, which predict label t + 1 at token t; False for masked language
            models, translation, and token or sequence classification.
    """

    shift: bool = True

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """Return the model's own loss, a 0-d tensor."""
        loss: Tensor = _field(model(**self._items(batch)), "loss")
        return loss

    def count(self, batch: Any) -> float:
        """Return the number of label tokens that the model's loss averages over."""
        return super().count(batch)

    def logits(self, model: Any, batch: Any) -> Tensor:
        """Return the model's logits `(B, T, V)`, without those of the last token if they are shifted."""
        logits: Tensor = _field(model(**self._items(batch)), "logits")
        return logits[:, :-1] if self.shift else logits

    def labels(self, batch: Any) -> Tensor:
        """Return the labels `(B, T)`, without those of the first token if they are shifted."""
        labels: Tensor = self._items(batch)["labels"]
        if self.shift and labels.ndim < 2:
            raise ProbeError(f"labels of a causal model must be (B, T), got {tuple(labels.shape)}: pass shift=False")
        return labels[:, 1:] if self.shift else labels

    def _items(self, batch: Any) -> Mapping[str, Any]:
        """Return the batch after checking that it is a mapping with labels."""
        if isinstance(batch, Mapping) and batch.get("labels") is not None:
            return batch
        raise ProbeError(
            f"a batch must be a mapping with 'labels', got {type(batch).__name__}: a model returns no loss without them"
        )


def _field(found: Any, name: str) -> Tensor:
    """Return the loss or the logits of a model's output, an attribute or an item."""
    value = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
    if not isinstance(value, Tensor):
        raise ProbeError(
            f"the model's output ({type(found).__name__}) has no {name}: HuggingFaceLoss needs a model that returns "
            "loss and logits by name"
        )
    return value
