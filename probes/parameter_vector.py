"""The trainable parameters of a model as one flat vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError

__all__ = ["ParameterVector"]


class ParameterVector:
    """The parameters that require grad, in the model's order, tied ones once.

    Which ones is settled when it is made; their tensors are looked up by name each time.

    Args:
        model: Any module.

    Raises:
        ProbeError: no parameter requires grad, one is not real and floating, or they lie on several devices.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ProbeError(f"model is a {type(model).__name__}, need a torch.nn.Module")
        found = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not found:
            total = sum(1 for _ in model.parameters())
            raise ProbeError(f"0 of {total} parameters require grad, need at least 1: call requires_grad_() on some")
        for name, p in found:
            if not p.is_floating_point():
                raise ProbeError(f"parameter {name} is {p.dtype}, need a real floating dtype: freeze or convert it")
        if len(devices := {str(p.device) for _, p in found}) > 1:
            raise ProbeError(f"parameters lie on {' and '.join(sorted(devices))}, need one device: move the model")
        self._model = model
        self._shapes = tuple(p.shape for _, p in found)
        self._dtypes = tuple(p.dtype for _, p in found)
        self.names = tuple(name for name, _ in found)
        self.size = sum(shape.numel() for shape in self._shapes)
        self.dtype: torch.dtype = reduce(torch.promote_types, self._dtypes, torch.float32)  # float32 at least

    @property
    def device(self) -> torch.device:
        """Where the vector lives."""
        return self.tensors()[0].device

    def tensors(self) -> list[Tensor]:
        """The parameters as they stand in the model now, detached, sharing their memory."""
        present: Mapping[str, Tensor] = dict(self._model.named_parameters())
        found = []
        for name, shape in zip(self.names, self._shapes, strict=True):
            p = present.get(name)
            if p is None or p.shape != shape:
                what = "is gone" if p is None else f"has shape {tuple(p.shape)}"
                raise ProbeError(f"parameter {name} {what}, was {tuple(shape)}: make a new Objective for the new model")
            found.append(p.detach())
        return found

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Tensors of the parameters' shapes as one vector `(n,)`."""
        return torch.cat([part.detach().reshape(-1).to(self.dtype) for part in parts])

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector `(n,)` cut into tensors of the parameters' shapes and dtypes."""
        if tuple(vector.shape) != (self.size,):
            raise ProbeError(f"a vector of shape {tuple(vector.shape)} does not fit {self.size} trainable parameters")
        parts = torch.split(vector.detach().to(self.device), [shape.numel() for shape in self._shapes])
        kinds = zip(parts, self._shapes, self._dtypes, strict=True)
        return [part.reshape(shape).to(dtype) for part, shape, dtype in kinds]

    def place(self, parts: Sequence[Tensor]) -> None:
        """Copy tensors into the parameters.

        Through `.data`: a graph that a caller holds for a backward pass of his own does not notice, which is
        right as long as the old values come back.
        """
        present = dict(self._model.named_parameters())
        for name, part in zip(self.names, parts, strict=True):
            present[name].data.copy_(part)
