"""Products with the curvature of a mean loss: over all batches, with the graphs kept that memory allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.evaluation import Pass
from lossscope.probes.objective import Objective
from lossscope.probes.operator import ProductFacts
from lossscope.probes.product_choice import Choice, Job, choose, rule, signature
from lossscope.probes.product_method import BatchProduct, Method, held_bytes
from lossscope.probes.product_trial import now, reason
from lossscope.probes.second_derivative import SecondDerivativeError

__all__ = ["HeldProducts"]


class HeldProducts:
    """Products of a curvature matrix with blocks of vectors, batch by batch, by one of several methods.

    Each batch is traversed once for all columns of a block. Between the ends of `held` the graphs of as many batches
    as fit into the memory are kept, in their order; those of the others are made anew for each product. Outside nothing
    is kept.

    Args:
        matrix: The name of the matrix, which what was measured is remembered by.
        objective: The loss.
        methods: The ways to take products, the plain one first.
        method: The name of one of them, or `auto`.
        memory: Bytes that the kept graphs may hold together.

    Raises:
        ProbeError: the method is unknown, or the memory is negative.
    """

    def __init__(
        self, matrix: str, objective: Objective, methods: Sequence[Method], *, method: str, memory: float
    ) -> None:
        self._methods = {known.name: known for known in methods}
        if method != "auto" and method not in self._methods:
            raise ProbeError(f"method={method!r} is unknown here: use one of auto, {', '.join(self._methods)}")
        if not memory >= 0:
            raise ProbeError(f"memory={memory:g} bytes is out of range, need 0 or more")
        self._objective = objective
        self._matrix = matrix
        self._memory = memory
        self._named = method != "auto"
        self._settled = self._named
        self._choice = rule(methods[0])
        if self._named:
            self._choice = Choice(method, self._methods[method].widths[-1], "it was asked for")
        self._kept: dict[int, BatchProduct] | None = None
        self._left = math.nan  # bytes that may still be kept
        self._gradients: dict[int, float] = {}  # seconds of one gradient, by batch
        self._unit = math.nan

    @property
    def facts(self) -> ProductFacts:
        """What is known of the products at the moment."""
        weights = self._objective.data.weights
        share = math.fsum(weights[index] for index in self._gradients)
        seconds = math.fsum(self._gradients.values()) / share if share else math.nan
        unit = self._objective.vector.unit if math.isnan(self._unit) else self._unit
        return ProductFacts(self._choice.method, unit, self._choice.width, seconds, self._choice)

    @contextmanager
    def held(self, expected: int | None = None) -> Iterator[None]:
        """A context in which graphs are kept; it may be nested."""
        if self._kept is not None:
            yield
            return
        with self._objective.evaluating():
            try:
                self._kept, self._left = {}, self._memory
                if not self._settled:
                    self._choice = self._chosen(expected)
                yield
            finally:
                self._kept = None

    def __call__(self, V: Tensor) -> Tensor:
        """The product A V for V of shape `(n, k)`."""
        rows = V.mT.contiguous()
        with self._objective.evaluating():
            try:
                return self._product(rows).mT
            except Exception as error:  # torch raises many kinds where a derivative is missing
                if _known(error):
                    raise
                return self._product_otherwise(rows, error).mT

    def _chosen(self, expected: int | None) -> Choice:
        """The choice for a job of so many products."""
        job = Job(self._objective, tuple(self._methods.values()), self._prepare, expected, self._memory)
        try:
            return choose(job, signature(self._matrix, self._objective))
        except Exception as error:  # of the plain method, which nothing can be compared with then
            if _known(error):
                raise
            return rule(job.methods[0], reason(error))

    def _product(self, rows: Tensor) -> Tensor:
        """The products of all batches, added up by their weights."""
        parts = (self._batch(at, rows) for at in self._objective.passes())
        total = next(parts)
        for part in parts:
            total.add_(part)
        return total

    def _product_otherwise(self, rows: Tensor, error: Exception) -> Tensor:
        """The product by the first other method that works, after an error of the present one."""
        failed = self._choice
        why = f"{failed.method} cannot take products here ({reason(error)})"
        if self._named:
            raise ProbeError(f"method={why}: use method='auto'") from error
        for method in self._methods.values():
            if method.name == failed.method or method.node_seconds:  # dear to set up
                continue
            self._choice = Choice(method.name, 1, why)
            if self._kept is not None:
                self._kept, self._left = {}, self._memory
            try:
                found = self._product(rows)
            except Exception:  # the first error says what is wrong
                continue
            self._settled = True
            return found
        self._choice = failed
        raise error

    def _batch(self, at: Pass, rows: Tensor) -> Tensor:
        """The weighted product of one batch, by its kept graph if there is one."""
        kept = self._kept
        made = kept.get(at.index) if kept is not None else None
        keep = made is not None
        if made is None:
            method = self._methods[self._choice.method]
            made = self._prepare(method, at)
            keep = kept is not None and self._fits(made)
            if kept is not None and keep:
                kept[at.index] = made
        chunks = torch.split(rows, self._choice.width)
        parts = [made.multiply(chunk, keep or i < len(chunks)) for i, chunk in enumerate(chunks, 1)]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if at.weight == 1 else found * at.weight

    def _prepare(self, method: Method, at: Pass) -> BatchProduct:
        """What a method makes of a batch; where that is one gradient, its time is kept."""
        begun = now(self._objective.device)
        made = method.prepare(self._objective, at)
        if method.is_gradient:
            seconds = now(self._objective.device) - begun
            self._gradients[at.index] = min(seconds, self._gradients.get(at.index, math.inf))
        if method.check is not None:
            method.check(self._objective)
        if method.unit is not None and math.isnan(self._unit):
            self._unit = method.unit(self._objective, at)
        return made

    def _fits(self, made: BatchProduct) -> bool:
        """Whether one more graph may be kept."""
        if (size := held_bytes(made)) > self._left:
            self._let_go()
            return False
        self._left -= size
        return True

    def _let_go(self) -> None:
        """In train mode a batch follows from the one before, so all graphs are kept or none."""
        if self._objective.mode == "train" and self._kept:
            self._kept.clear()
            self._left = -1.0


def _known(error: Exception) -> bool:
    """Whether an error says that nothing can be measured, whatever the method."""
    return isinstance(error, ProbeError) and not isinstance(error, SecondDerivativeError)
