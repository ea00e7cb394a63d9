"""Second-order expansion of the loss between two points, module by module."""

from __future__ import annotations

import math
import time

from torch import Tensor

from lossscope.landscape.analysis.diff import module_of
from lossscope.landscape.surfaces.difference import LossChange, ModuleChange
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.sums import dot, norm

__all__ = ["loss_change"]

_HEAD = 3  # numbers of the whole, before those of the modules


def loss_change(objective: Objective, first: Tensor, second: Tensor, own_loss: float = math.nan) -> LossChange:
    r"""Expand the loss at one point to the other, and tell what is left.

    With :math:`\Delta = B - A`, gradient and Hessian at A, a module m has the parts :math:`g_m^\top\Delta_m` and
    :math:`\tfrac12\Delta_m^\top (H\Delta)_m`. They add up to the terms of the whole, cross terms between modules
    included, and do not change if neurons are rescaled in both points alike. A network of ReLU has kinks, which no
    derivative at A knows: the expansion is that of the piece at A.

    Args:
        objective: The loss, with the model at A: its buffers and frozen parameters are those of A.
        first: `(n,)`, A.
        second: `(n,)`, B.
        own_loss: The loss of B with its own buffers.

    Returns:
        The expansion; the errors bound the rounding, measured by another precision. Cost: two losses, a gradient and a
        Hessian product, in two precisions.

    Raises:
        ProbeError: The loss is not finite at A, or has no second derivative.

    Source:
        Taylor's theorem; a quadratic loss has no remainder.
    """
    begun = time.perf_counter()
    groups = _modules(objective)
    with objective.at(first):
        found, sizes = _parts(objective, first, second, groups)
        errors = number_rounding(objective, lambda other: _parts(other, first, second, groups)[0], found, sizes)
        loss_a = objective.value()
    modules = tuple(
        ModuleChange(
            name,
            sum(end - start for start, end in spans),
            found[place],
            errors[place],
            found[place + 1],
            errors[place + 1],
        )
        for place, (name, spans) in zip(range(_HEAD, len(found), 2), groups.items(), strict=True)
    )
    return LossChange(loss_a, found[0], own_loss, modules, errors[1], errors[2], time.perf_counter() - begun)


def _modules(objective: Objective) -> dict[str, list[tuple[int, int]]]:
    """Return the places of the parameters of each module in the vector."""
    groups: dict[str, list[tuple[int, int]]] = {}
    place = 0
    for name, tensor in zip(objective.vector.names, objective.vector.tensors(), strict=True):
        groups.setdefault(module_of(name), []).append((place, place + tensor.numel()))
        place += tensor.numel()
    return groups


def _parts(
    objective: Objective, first: Tensor, second: Tensor, groups: dict[str, list[tuple[int, int]]]
) -> tuple[list[float], list[float]]:
    """Return the loss at B, its change, the remainder, and both parts of each module; and the sizes of their terms."""
    start, end = (objective.vector.fitting(one) for one in (first, second))
    between = end - start
    with objective.evaluating():
        loss_a, loss_b = objective.value(), objective.value_at(end)
        gradient = objective.gradient()
        product = hessian(objective) @ between
    parts, sizes = list[float](), list[float]()
    for spans in groups.values():
        for factor, vector in ((1.0, gradient), (0.5, product)):
            pairs = [(vector[a:b], between[a:b]) for a, b in spans]
            parts.append(factor * math.fsum(float(dot(*pair)) for pair in pairs))
            sizes.append(factor * math.fsum(float(norm(one)) * float(norm(other)) for one, other in pairs))
    change = loss_b - loss_a
    scale = abs(loss_a) + abs(loss_b)
    head = [loss_b, change, change - math.fsum(parts)]
    return [*head, *parts], [abs(loss_b), scale, scale + math.fsum(sizes), *sizes]
