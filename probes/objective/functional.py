"""Calling a function of a model with other tensors standing in for its parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lossscope.probes.objective.parameters import cast

__all__ = ["Substitution"]


class Substitution:
    """`function(model, batch)` evaluated with other parameters and buffers in the model.

    The model's own tensors are back in their places when a call returns; they are neither written nor
    part of any graph, so hooks on them do not fire and `.grad` stays as it is.

    Args:
        model: The model.
        function: Anything that calls the model it is given, such as a loss.
        dtype: What floating buffers are to be cast to; None for what they are.
    """

    def __init__(self, model: nn.Module, function: Callable[[Any, Any], Any], dtype: torch.dtype | None = None) -> None:
        self._call = _Call(model, function)
        self._dtype = dtype
        self._places = _places(self._call)

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers, to be used up by calls."""
        copies = ((name, buffer.detach().clone()) for name, buffer in self._call.named_buffers())
        return {name: cast(buffer, self._dtype) for name, buffer in copies}

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any) -> Any:
        """What the function returns; buffers are updated in place as the model would its own."""
        tensors = {f"model.{name}": p for name, p in parameters.items()} | buffers
        # not tie_weights: where a module is registered twice, it would leave the substitutes in for good
        everywhere = {place: tensor for name, tensor in tensors.items() for place in self._places.get(name, [name])}
        return functional_call(self._call, everywhere, (batch,), tie_weights=False)


class _Call(nn.Module):
    """The function as a module that has the model as its only part."""

    def __init__(self, model: nn.Module, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, batch: Any) -> Any:
        """The function of model and batch."""
        return self.function(self.model, batch)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """Where each parameter and buffer is kept, each module counted once, by its first name: tied ones have several."""
    places: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        own = [
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            places.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {names[0]: names for names in places.values()}
