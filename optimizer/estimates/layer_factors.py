"""Kronecker factors of the Fisher matrix of dense layers: second moments of their inputs and output gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lossscope.optimizer.ascent.two_pass import Pass, RandomState
from lossscope.optimizer.errors import OptimizerError
from lossscope.optimizer.estimates.drawn_labels import with_drawn_labels
from lossscope.optimizer.estimates.estimated_step import EstimatedStep
from lossscope.optimizer.update import sums

__all__ = ["layer_factors"]


class _Taps:
    """Sums over the rows that went through each dense layer."""

    def __init__(self, weights: Mapping[Tensor, str]) -> None:
        self._weights = weights
        self.rows: dict[Tensor, int] = {}
        self.inputs: dict[Tensor, Tensor] = {}  # sums of a a'
        self.outputs: dict[Tensor, Tensor] = {}  # sums of g g'

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the forward and backward passes inside the context."""
        hook = register_module_forward_hook(self._forward)
        try:
            yield
        finally:
            hook.remove()

    def _forward(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        if weight is not None and weight in self._weights and output.requires_grad:
            output.register_hook(partial(self._backward, weight, inputs[0].detach()))

    @torch.no_grad()
    def _backward(self, weight: Tensor, given: Tensor, gradient: Tensor) -> None:
        a, g = (t.reshape(-1, t.shape[-1]).to(sums.arithmetic(weight)) for t in (given, gradient))
        self.rows[weight] = self.rows.get(weight, 0) + len(a)
        for kept, rows in ((self.inputs, a), (self.outputs, g)):
            product = rows.T @ rows
            kept[weight] = kept[weight].add_(product) if weight in kept else product


def layer_factors(step: EstimatedStep) -> Iterator[Pass]:
    """Yield a pass, and one with drawn labels where it is due, whose dense layers are listened to.

    The factors are the mean of `a a'` over the rows of inputs, and `N` times the sum of `g g'` over rows, with the
    gradient g of the mean loss of N labels: the mean of that of one label.
    """
    start = RandomState(step.parameters)
    first = Pass(0)
    yield first
    step.loss = first.loss
    if not step.due:
        return
    taps = _Taps(step.stepped)
    for drawn in with_drawn_labels(step, start):
        with taps.listening():
            yield drawn
        samples = drawn.check()
    step.estimates = {
        weight: {"inputs": taps.inputs[weight] / max(rows, 1), "outputs": taps.outputs[weight] * samples}
        for weight, rows in taps.rows.items()
    }
    for p, name in step.stepped.items():
        if p.grad is not None and p not in step.estimates and step.fresh(p):
            raise OptimizerError(
                f"{step.rule} saw no dense layer (torch.nn.Linear) with the weight {name}: put it in a group with "
                f"track='vector', or make the optimizer by create({step.rule!r}, model)"
            )
