"""Symmetries of a network: those that it declares, or those that a trace by torch.fx shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Final

import torch
from torch import fx, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.conclusion import Symmetries
from lossscope.probes.gauge.symmetry import Symmetry
from lossscope.probes.gauge.walk import Walk
from lossscope.probes.objective.module_state import ModuleState

__all__ = ["DECLARATION", "symmetries_of"]

DECLARATION: Final = "weight_symmetries"  # method of a network that returns its symmetries, which are then not traced


def symmetries_of(model: nn.Module) -> Symmetries:
    """Find the rescaling symmetries of a network in eval mode.

    A network whose class has a method `weight_symmetries()` is not traced: the method returns all its symmetries.

    Args:
        model: The network; it is traced, and its state is restored afterwards.

    Returns:
        The symmetries and the layers about which nothing is known.

    Raises:
        ProbeError: A declared symmetry names a parameter that does not exist.
    """
    if declare := getattr(type(model), DECLARATION, None):
        return _declared(model, declare(model))
    if model._forward_hooks or model._forward_pre_hooks or "forward" in vars(model):
        return Symmetries((), (), ("the network: its forward pass has hooks",))
    modules = list(model.modules())
    state, modes = ModuleState(modules), [module.training for module in modules]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about a forward pass without numbers
            model.eval()
            graph = fx.Tracer(param_shapes_constant=True).trace(model)
    except Exception as error:
        words = (str(error).strip() or "no reason given").splitlines()[0]
        return Symmetries((), (), (f"the network: torch.fx cannot trace it ({type(error).__name__}: {words})",))
    finally:
        state.restore()
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
    return Walk(model, graph).symmetries()


def _declared(model: nn.Module, symmetries: Iterable[Symmetry]) -> Symmetries:
    """Return the symmetries that a network declares, but for those of frozen weights."""
    parameters, known = dict(model.named_parameters()), []
    for one in symmetries:
        names = [slot.name for slot in (*one.writes, *one.reads)]
        if unknown := [name for name in names if name not in parameters]:
            raise ProbeError(
                f"{type(model).__name__}.{DECLARATION}() names {unknown[0]!r}, which is no parameter: use the names of "
                f"named_parameters(), {', '.join(list(parameters)[:5])}, ..."
            )
        if all(parameters[name].requires_grad for name in names):
            known.append(one)
    return Symmetries(tuple(known), (), ())
