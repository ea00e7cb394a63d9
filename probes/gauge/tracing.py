"""Symmetries of a network: those that it declares, or those that a trace by torch.fx shows."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.conclusion import Symmetries
from lossscope.probes.gauge.symmetry import Shift, Symmetry
from lossscope.probes.gauge.walk import Walk
from lossscope.probes.objective.module_state import ModuleState

__all__ = ["DECLARATION", "symmetries_of"]

DECLARATION: Final = "weight_symmetries"  # method of a network that returns its symmetries, which are then not traced


def symmetries_of(model: nn.Module, given: Collection[str] = ()) -> Symmetries:
    """Find the rescaling symmetries of a network in eval mode.

    A network whose class has a method `weight_symmetries()` is not traced: the method returns all its symmetries.
    Numbers, flags and None that are defaults of its forward pass keep these values. Where an argument that is None by
    default makes another network, that is listed as unknown.

    Args:
        model: The network; it is traced, and its state is restored afterwards.
        given: Names of arguments that the forward pass is called with, whatever their defaults.

    Returns:
        The symmetries and the layers about which nothing is known.

    Raises:
        ProbeError: A declared symmetry names a parameter that does not exist, or has no row for each neuron in it.
    """
    if declare := getattr(type(model), DECLARATION, None):
        return _declared(model, declare(model))
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        return Symmetries((), (), ("the network: its forward pass has hooks",))
    fixed, reason = _defaults(model, given), ""
    found = _traced(model, fixed)
    optional = [name for name, value in fixed.items() if value is None]
    if isinstance(found, fx.Graph) and optional:
        other = _traced(model, {name: value for name, value in fixed.items() if value is not None})
        if isinstance(other, fx.Graph) and Walk(model, other).symmetries() != Walk(model, found).symmetries():
            reason = f"the network: it is another one where {' or '.join(optional)} is given to its forward pass"
    if isinstance(found, str):
        return Symmetries((), (), (found,))
    symmetries = Walk(model, found).symmetries()
    return replace(symmetries, unknown=(*symmetries.unknown, reason)) if reason else symmetries


def _defaults(model: nn.Module, given: Collection[str]) -> dict[str, Any]:
    """Return the arguments of the forward pass that keep a default which is no tensor."""
    try:
        arguments = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):
        return {}
    return {
        name: argument.default
        for name, argument in arguments.items()
        if name not in given and (argument.default is None or isinstance(argument.default, bool | int | float | str))
    }


def _traced(model: nn.Module, fixed: Mapping[str, Any]) -> fx.Graph | str:
    """Return the trace in eval mode, or the reason for which there is none."""
    modules = list(model.modules())
    state, modes = ModuleState(modules), [module.training for module in modules]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about a forward pass without numbers
            model.eval()
            return fx.Tracer(param_shapes_constant=True).trace(model, dict(fixed))
    except Exception as error:
        words = (str(error).strip() or "no reason given").splitlines()[0]
        return f"the network: torch.fx cannot trace it ({type(error).__name__}: {words})"
    finally:
        state.restore()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _declared(model: nn.Module, symmetries: Any) -> Symmetries:
    """Return the symmetries that a network declares, but for those of frozen weights."""
    where = f"{type(model).__name__}.{DECLARATION}()"
    if not isinstance(symmetries, list | tuple) or not all(isinstance(one, Symmetry | str) for one in symmetries):
        raise ProbeError(f"{where} must return a list of Scaling, Mixing, Shift and text, got {symmetries!r:.80}")
    parameters, known = dict(model.named_parameters()), []
    for one in symmetries:
        if isinstance(one, str):
            continue
        names = [slot.name for slot in (*one.writes, *one.reads)]
        if unknown := [name for name in names if name not in parameters]:
            raise ProbeError(
                f"{where} names {unknown[0]!r}, which is no parameter: use the names of "
                f"named_parameters(), {', '.join(list(parameters)[:5])}, ..."
            )
        _require_rows(one, parameters, where)
        if all(parameters[name].requires_grad for name in names):
            known.append(one)
    return Symmetries(tuple(known), (), tuple(one for one in symmetries if isinstance(one, str)))


def _require_rows(one: Symmetry, parameters: Mapping[str, Tensor], where: str) -> None:
    """Raise unless all slots of a declared symmetry have a row for each neuron."""
    if not one.writes or not (one.reads or isinstance(one, Shift)):
        raise ProbeError(f"{where} declares {one.name!r} without writes or reads: name the weights on both sides")
    size = None if isinstance(one, Shift) else one.size
    for slot in (*one.writes, *one.reads):
        try:
            rows = len(slot.rows({slot.name: parameters[slot.name].detach().contiguous()}))
        except (RuntimeError, IndexError, ValueError) as error:
            raise ProbeError(
                f"{where} views {slot.name!r}, of shape {tuple(parameters[slot.name].shape)}, as {slot.shape} in the "
                f"order {slot.order}, which is not possible ({error}): give a shape of as many numbers and its axes"
            ) from error
        if size is not None and rows != size:
            raise ProbeError(f"{where} declares {one.name!r} of size {size}, but {slot.name!r} has {rows} rows there")
        size = rows
