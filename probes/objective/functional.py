"""Evaluate a function of a model with other tensors in place of its parameters and buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from lossscope.probes.objective.module_state import ModuleState
from lossscope.probes.objective.parameters import cast
from lossscope.probes.objective.reached import Reached

__all__ = ["Substitution"]

_CAST: Final = 10  # parameters of other networks that are cast to another dtype, at most, per parameter of the model


class Substitution:
    """`function(model, batch)` as a function of the model's parameters and buffers.

    The model's own tensors are restored when a call returns, and so are attributes, lists and dictionaries of modules:
    each call finds them as they were. Parameters and buffers are not written and are in no graph, so hooks on them do
    not fire and `.grad` is unchanged. Networks beside the model that the function reaches are treated alike.

    Args:
        model: The model.
        function: Any function that calls the model it is given, such as a loss.
        dtype: Dtype to which floating buffers are cast; None to keep theirs.
        reached: What the function reaches beside the model.
        held: Not empty if the function uses parameters that the model holds elsewhere too, as in a list; may be
            filled later.
    """

    def __init__(
        self,
        model: nn.Module,
        function: Callable[[Any, Any], Any],
        dtype: torch.dtype | None = None,
        reached: Reached | None = None,
        held: Sequence[str] = (),
    ) -> None:
        beside = reached or Reached()
        self._call = _Call(model, function, beside.modules)
        self._dtype = dtype
        self._held = held
        self._objects = beside.objects
        self._places = _places(self._call)
        own = sum(p.numel() for p in model.parameters())
        others = {name: p for name, p in self._call.named_parameters() if not name.startswith("model.")}
        few = sum(p.numel() for p in others.values()) <= _CAST * own
        self._others = others if dtype is not None and few else {}

    def of(self, function: Callable[[Any, Any], Any]) -> Substitution:
        """Return the same for another function that reaches nothing else."""
        other = copy.copy(self)
        other._call = copy.copy(self._call)
        vars(other._call)["function"] = function
        return other

    def _own(self, parameters: Iterable[str]) -> list[tuple[str, Tensor]]:
        """Return the model's own parameters of some names."""
        present = dict(self._call.model.named_parameters())
        return [(name, present[name]) for name in parameters if name in present]

    def buffers(self) -> dict[str, Tensor]:
        """Return copies of the model's buffers, which calls may update."""
        copies = ((name, buffer.detach().clone()) for name, buffer in self._call.named_buffers())
        return {name: cast(buffer, self._dtype) for name, buffer in copies}

    def __call__(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Any) -> Any:
        """Evaluate the function; the given buffers are updated in place as the model would update its own."""
        tensors = {f"model.{name}": p for name, p in parameters.items()} | buffers
        tensors |= {name: cast(p.detach(), self._dtype) for name, p in self._others.items()}
        # tie_weights=True would not restore the tensors of a module that is registered twice
        everywhere = {place: tensor for name, tensor in tensors.items() for place in self._places.get(name, [name])}
        state = ModuleState(self._call.modules(), self._objects)
        held = {id(p): tensors[f"model.{name}"] for name, p in self._own(parameters)} if self._held else {}
        try:
            with (
                nullcontext() if self._dtype is None else _Converted(self._dtype),
                _Redirected(held) if held else nullcontext(),
            ):
                return functional_call(self._call, everywhere, (batch,), tie_weights=False)
        finally:
            state.restore()


class _Redirected(TorchFunctionMode):
    """Context in which tensors, by their identity, are replaced by others wherever a function of torch gets them."""

    def __init__(self, others: dict[int, Tensor]) -> None:
        super().__init__()
        self._others = others

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function with the other tensors."""
        return func(*(self._replaced(one) for one in args), **self._replaced(kwargs or {}))

    def _replaced(self, value: Any) -> Any:
        """Return a value with the other tensors in place of those that it is or has."""
        if isinstance(value, Tensor):
            return self._others.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(self._replaced(one) for one in value)
        return {key: self._replaced(one) for key, one in value.items()} if type(value) is dict else value


class _Converted(TorchFunctionMode):
    """Context in which every conversion of a floating tensor to a floating dtype is one to the given dtype.

    Without it `logits.float()` in a loss would round what the dtype was chosen to keep.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, with the dtype replaced if it is a conversion."""
        kwargs = kwargs or {}
        if func in _CONVERSIONS and args[0].is_floating_point():
            return args[0].to(self._dtype)
        if func is Tensor.to and args[0].is_floating_point():
            args = tuple(self._dtype if _is_floating(one) else one for one in args)
            kwargs = {key: self._dtype if _is_floating(one) else one for key, one in kwargs.items()}
        return func(*args, **kwargs)


_CONVERSIONS: Final = (Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)


def _is_floating(value: Any) -> bool:
    """Return True for a floating dtype."""
    return isinstance(value, torch.dtype) and value.is_floating_point


class _Call(nn.Module):
    """The function as a module whose submodules are the model and the networks beside it."""

    def __init__(self, model: nn.Module, function: Callable[[Any, Any], Any], beside: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        vars(self)["function"] = function  # not as a submodule, which it is among those beside the model
        self.beside = nn.ModuleList(beside)

    def forward(self, batch: Any) -> Any:
        """Return the function of model and batch."""
        return vars(self)["function"](self.model, batch)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """Map the first name of each parameter and buffer to all its names: tied ones have several."""
    places: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        own = [
            *part.named_parameters(recurse=False, remove_duplicate=False),
            *part.named_buffers(recurse=False, remove_duplicate=False),
        ]
        for name, tensor in own:
            places.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {names[0]: names for names in places.values()}
