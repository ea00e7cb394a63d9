"""Calling a function of a model with other tensors standing in for its parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Substitution"]


class Substitution:
    """`function(model, batch)` evaluated with other parameters and buffers in the model.

    The model's own tensors are back in their places when a call returns; they are neither written nor
    part of any graph, so hooks on them do not fire and `.grad` stays as it is.

    Args:
        model: The model.
        function: Anything that calls the model it is given, such as a loss.
    """

    def __init__(self, model: nn.Module, function: Callable[[Any, Any], Any]) -> None:
        self._call = _Call(model, function)

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers, to be used up by calls."""
        return {name: buffer.detach().clone() for name, buffer in self._call.named_buffers()}

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any) -> Any:
        """What the function returns; buffers are updated in place as the model would its own."""
        tensors = {f"model.{name}": p for name, p in parameters.items()}
        return functional_call(self._call, (tensors, buffers), (batch,))


class _Call(nn.Module):
    """The function as a module that has the model as its only part."""

    def __init__(self, model: nn.Module, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> Any:
        """The function of model and batch."""
        return self.function(self.model, batch)
