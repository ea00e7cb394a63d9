"""Products with the curvature of a mean loss: over all batches, with the graphs kept that memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import ProductFacts, SymmetricOperator
from lossscope.probes.operators.gradient_time import GradientTime
from lossscope.probes.operators.method import BatchProduct, Method, held_bytes
from lossscope.probes.operators.product_choice import Choice, Job, choose, rule, signature
from lossscope.probes.operators.second_derivative import SecondDerivativeError
from lossscope.probes.operators.timing import mismatch, now, out_of_memory, reason

__all__ = ["CachedProducts"]


class CachedProducts:
    """Products of a curvature matrix with blocks of vectors, batch by batch, by one of several methods.

    Each batch is traversed once for all columns of a block. Between the ends of `cached` the graphs of as many batches
    as fit into the memory are kept, in their order; those of the others are made anew for each product. Outside nothing
    is kept, and the method is that of the rule: what was chosen for a job may be dear to set up.

    A method that was chosen by what it cost another objective is compared with the plain one first, on one product.

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
        self._plain = methods[0]
        self._compared = objective.compared.setdefault(matrix, {})
        self._choice = rule(self._plain)
        if self._named:
            self._choice = Choice(method, self._methods[method].widths[-1], "it was asked for")
        self._kept: dict[int, BatchProduct] | None = None
        self._left = math.nan  # bytes that may still be kept
        self._gradient = GradientTime(objective)
        self._unit = math.nan

    @property
    def facts(self) -> ProductFacts:
        """What is known of the products at the moment."""
        unit = self._objective.vector.unit if math.isnan(self._unit) else self._unit
        return ProductFacts(self._choice.method, unit, self._choice.width, self._gradient.seconds, self._choice)

    def operator(
        self, restrict: Callable[[tuple[str, ...]], SymmetricOperator], *, hessian_of: Objective | None = None
    ) -> SymmetricOperator:
        """These products as an operator.

        Args:
            restrict: The diagonal block of some of the parameters, see `restricted`.
            hessian_of: The objective, where the matrix is its Hessian.

        Returns:
            The operator.
        """
        objective = self._objective
        return SymmetricOperator(
            objective.size,
            self,
            dtype=objective.dtype,
            device=objective.device,
            cached=self.cached,
            facts=lambda: self.facts,
            objective=objective,
            hessian_of=hessian_of,
            restrict=restrict,
        )

    @contextmanager
    def cached(self, expected: int | None = None) -> Iterator[None]:
        """A context in which graphs are kept; it may be nested. At its end the time of a gradient is a warm one.

        Args:
            expected: How many products will be taken; None where that is unknown.

        Yields:
            Nothing.

        Raises:
            ProbeError: the loss cannot be measured, or memory runs out.
        """
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
            self._gradient.warm()

    def __call__(self, V: Tensor) -> Tensor:
        """The product A V for V of shape `(n, k)`."""
        rows = V.mT.contiguous()
        with self._objective.evaluating():
            if self._kept is None and not self._settled:
                self._choice = rule(self._plain)
            try:
                return self._product(rows).mT
            except Exception as error:  # torch raises many kinds where a derivative is missing
                self._refuse(error)
                return self._product_otherwise(rows, error).mT

    def _chosen(self, expected: int | None) -> Choice:
        """The choice for a job of so many products."""
        methods = tuple(self._methods.values())
        job = Job(self._objective, methods, self._prepare, expected, self._memory, self._compared)
        try:
            return choose(job, signature(self._matrix, self._objective))
        except Exception as error:  # of the plain method, which nothing can be compared with then
            self._refuse(error)
            return rule(self._plain, reason(error))

    def _refuse(self, error: Exception) -> None:
        """Raise what says that nothing can be measured, whatever the method; where memory ran out, what to do."""
        if isinstance(error, ProbeError) and not isinstance(error, SecondDerivativeError):
            raise error
        if out_of_memory(error):
            raise ProbeError(
                f"memory ran out in a product by {self._choice.method}, with up to {self._memory:.3g} bytes for kept "
                f"graphs ({reason(error)}): pass a smaller memory=, or make the batches smaller"
            ) from error

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

    def _batch(self, at: BatchEvaluation, rows: Tensor) -> Tensor:
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
        if at.index == 0 and self._choice.trials:
            self._compare(at, rows, found, {(self._choice.method, len(chunk) > 1) for chunk in chunks})
        return found if at.weight == 1 else found * at.weight

    def _compare(self, at: BatchEvaluation, rows: Tensor, found: Tensor, ways: set[tuple[str, bool]]) -> None:
        """Raise where products differ from those of the plain method, by a mean of them; once for an objective."""
        if self._choice.method == self._plain.name or all(self._compared.get(way) for way in ways):
            return
        made = self._prepare(self._plain, replace(at, buffers=self._objective.call.buffers()))
        mean = 1 + torch.arange(len(rows)).to(rows)[None] / len(rows)  # weights in which v and -v do not cancel
        wrong = mismatch(mean @ found, made.multiply(mean @ rows, False), self._objective.vector.unit)
        self._compared.update(dict.fromkeys(ways, not wrong))
        if wrong:
            raise _WrongProductError(f"its product differs from that of {self._plain.name} by {wrong} of it")

    def _prepare(self, method: Method, at: BatchEvaluation) -> BatchProduct:
        """What a method makes of a batch; where that is one gradient, its time is kept."""
        begun = now(self._objective.device)
        made = method.prepare(self._objective, at)
        if method.is_gradient:
            self._gradient.see(at.index, now(self._objective.device) - begun)
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


class _WrongProductError(Exception):
    """A method that is wrong without a word."""
