"""Copy of a network with other weights, and the difference of the outputs of the two."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.symmetry import Symmetry, Weights
from lossscope.probes.objective.isolation import isolated

__all__ = ["changed_copy", "copied", "outputs_apart", "require_precise"]

_PRECISE: Final = (torch.float32, torch.float64)
_NARROW: Final = {"mps"}  # types of devices without float64


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a network that shares its hooks and has no gradients.

    Args:
        model: The network; tensors that a forward pass has left in it are copied without their graph.

    Returns:
        The copy.

    Raises:
        ProbeError: It cannot be copied, or has weights without values.
    """
    if any(isinstance(p, nn.parameter.UninitializedParameter) or p.is_meta for p in model.parameters()):
        raise ProbeError("some weights of the model have no values yet: load them, or run one batch through it")
    kept: dict[int, Any] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                kept[id(value)] = value.detach().clone()
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        kept |= {id(hook): hook for hook in chain(*(table.values() for table in hooks))}
    try:
        return copy.deepcopy(model, kept)
    except Exception as error:
        raise ProbeError(
            f"the model cannot be copied by copy.deepcopy ({type(error).__name__}: {error}), which a balanced point "
            "requires: remove from it what holds files, locks or graphs"
        ) from error


def changed_copy(model: nn.Module, symmetries: Sequence[Symmetry], change: Callable[[Weights], None]) -> None:
    """Change the weights that symmetries name, in float64, and round them back.

    Args:
        model: The copy, which is changed in place.
        symmetries: What may be changed.
        change: Changes float64 weights in place.

    Raises:
        ProbeError: A weight has fewer digits than float32.
    """
    parameters = dict(model.named_parameters())
    names = dict.fromkeys(slot.name for one in symmetries for slot in (*one.writes, *one.reads, *one.gains))
    require_precise(parameters, names)
    weights = {name: _double(parameters[name]) for name in names}
    with torch.no_grad():
        change(weights)
        for name, values in weights.items():
            parameters[name].copy_(values)


def require_precise(parameters: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Raise unless parameters can be rescaled without losing digits of the function.

    Args:
        parameters: All parameters by name.
        names: Those that will change.

    Raises:
        ProbeError: One is neither float32 nor float64.
    """
    for name in names:
        if parameters[name].dtype not in _PRECISE:
            raise ProbeError(
                f"{name} is {parameters[name].dtype}, to which rescaled weights cannot be rounded without changing the "
                "function: pass a copy in float32, copy.deepcopy(model).float()"
            )


def outputs_apart(model: nn.Module, other: nn.Module, batch: Any) -> float:
    """Return the largest difference of the outputs of two networks in eval mode, relative to the largest output.

    Args:
        model: The network.
        other: The other one.
        batch: Inputs, a tuple or list that starts with them, or a mapping of keyword arguments.

    Returns:
        The difference; 0 if both outputs are all zero, nan if they are not finite.

    Raises:
        ProbeError: The batch is an empty tuple or list.
    """
    if isinstance(batch, tuple | list) and not batch:
        raise ProbeError("the batch is empty: pass the inputs, or a tuple that starts with them")
    before, after = (_outputs(one, batch) for one in (model, other))
    largest = max((float(a.abs().max()) for a in before if a.numel()), default=0.0)
    apart = max((float((a - b).abs().max()) for a, b in zip(before, after, strict=True) if a.numel()), default=0.0)
    return apart / largest if apart or largest != largest else apart


def _outputs(model: nn.Module, batch: Any) -> list[Tensor]:
    """Return the floating tensors among the outputs, in float64 on the CPU."""
    devices = {p.device for p in model.parameters()}
    with isolated(model, training=False, devices=devices), torch.no_grad():
        if isinstance(batch, Mapping):
            found = model(**batch)
        else:
            found = model(batch[0] if isinstance(batch, tuple | list) else batch)
    leaves = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaf.detach().cpu().double() for leaf in leaves]


def _double(parameter: Tensor) -> Tensor:
    """Return a contiguous float64 copy, on the CPU if the device has no float64."""
    device = "cpu" if parameter.device.type in _NARROW else parameter.device
    copy_ = parameter.detach().to(device).to(torch.float64, copy=True)
    return copy_.contiguous()
