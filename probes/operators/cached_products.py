"""Curvature-vector products of a mean loss, summed over batches, with graphs cached as far as memory allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.assumed_rounding import rounding_is_assumed
from lossscope.probes.operators.base import ProductFacts, Reference
from lossscope.probes.operators.method import BatchProduct, Method, graph_bytes
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.second_derivative import SecondDerivativeError
from lossscope.probes.operators.timing import GradientTime, now
from lossscope.probes.sums import all_finite

__all__ = ["CachedProducts", "out_of_memory", "reason"]

_UNSETTLED: Final = 0.01  # relative error of differences above which they are no derivative


class CachedProducts:
    """Products of a curvature matrix with blocks of vectors, batch by batch.

    Each batch is evaluated once for all columns of a block. Inside `cached` the graphs of the first batches are kept,
    as many as fit into `memory`; those of the other batches are rebuilt for each product. Outside nothing is kept.

    The first of `methods` is the default. Where it raises, the methods marked `fallback` are tried in order; the first
    that works replaces it for good, and `facts.fallback_reason` says why. Any other method is never replaced.

    Args:
        objective: The loss.
        methods: The available methods, the default first.
        method: The name of one of them.
        memory: Upper bound in bytes for all cached graphs together.

    Raises:
        ProbeError: the method is unknown, or the memory is negative.
    """

    def __init__(self, objective: Objective, methods: Sequence[Method], *, method: str, memory: float) -> None:
        by_name = {known.name: known for known in methods}
        if method not in by_name:
            raise ProbeError(f"method must be one of {', '.join(by_name)}, got {method!r}")
        if not memory >= 0:
            raise ProbeError(f"memory must be at least 0 bytes, got {memory:g}")
        self._objective = objective
        self._memory = memory
        self._method = by_name[method]
        self._width = self._method.width
        self._default = methods[0].name
        self._fallbacks = [known for known in methods if known.fallback] if method == self._default else []
        self._fallback_reason = ""
        self._cache: dict[int, BatchProduct] | None = None  # batch index -> product; None outside `cached`
        self._free = math.nan  # bytes that may still be cached
        self._gradient = GradientTime(objective)
        self._unit = math.nan
        self._rounding = 0.0  # of the measured error, see `MeasuredError`

    @property
    def facts(self) -> ProductFacts:
        """Current method, rounding unit and cost of the products."""
        measured = not math.isnan(self._unit)
        unit = self._unit if measured else self._objective.vector.unit
        name = self._objective.replaced.get(self._method, self._method.name)  # found when products were taken before
        return ProductFacts(name, unit, measured, self._gradient.seconds, self._fallback_reason)

    def operator(
        self,
        restrict: Callable[[tuple[str, ...]], ObjectiveOperator],
        again: Callable[[Objective], ObjectiveOperator],
        *,
        is_hessian: bool = False,
    ) -> ObjectiveOperator:
        """Return these products as an operator.

        Args:
            restrict: Makes the diagonal block of some of the parameters, see `restricted`.
            again: Makes the same operator of the objective in another dtype, by the default method, without a cache.
            is_hessian: True if the matrix is the Hessian of the objective.

        Returns:
            The operator.
        """
        return ObjectiveOperator(
            self._objective,
            self,
            restrict=restrict,
            cached=self.cached,
            facts=lambda: self.facts,
            reference=lambda: self._reference(again),
            otherwise=self.by_fallback,
            is_hessian=is_hessian,
        )

    def _reference(self, again: Callable[[Objective], ObjectiveOperator]) -> Reference | None:
        """Return the operator with which products are compared; that of differences has another step."""
        if rounding_is_assumed():
            return None
        if self._method.compared is not None and not math.isnan(self._unit):
            doubled = CachedProducts(self._objective, [self._method.compared], method=self._method.name, memory=0)
            operator = doubled.operator(lambda names: again(self._objective.restricted(names)), again)
            return Reference(operator, self._method.share, self._rounding)
        wide, narrow = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps
        if self._objective.vector.unit > wide:
            return Reference(again(self._objective.in_dtype(torch.float64)))
        return Reference(again(self._objective.in_dtype(torch.float32)), wide / narrow)

    @contextmanager
    def cached(self) -> Iterator[None]:
        """Keep graphs inside this context; it may be nested. On exit a warm gradient is timed.

        Yields:
            Nothing.

        Raises:
            ProbeError: the loss cannot be measured, or memory runs out.
        """
        if self._cache is not None:
            yield
            return
        with self._objective.evaluating(), self._objective.fixed():
            try:
                self._cache, self._free = {}, self._memory
                yield
            finally:
                self._cache = None
            self._gradient.warm()

    def __call__(self, V: Tensor) -> Tensor:
        """Return the product A V for V of shape `(n, k)`."""
        rows = V.mT.contiguous()
        with self._objective.evaluating(), self._objective.fixed():
            try:
                found = self._product(rows)
            except Exception as error:  # torch raises many types where a derivative is missing
                self._raise_if_final(error)
                found = self._product_by_fallback(rows, error)
            return found.mT

    def by_fallback(self, V: Tensor) -> Tensor | None:
        """Return a product that is not finite by another method: a formula of autograd may fail at a point.

        Args:
            V: `(n, k)`.

        Returns:
            The product by the first fallback that has a finite one; None if there is none.
        """
        if not self._fallbacks:
            return None
        with self._objective.evaluating():
            try:
                error = ArithmeticError("the product is not finite")  # sinc at 0, say
                return self._product_by_fallback(V.mT.contiguous(), error).mT
            except ArithmeticError:
                return None

    def _raise_if_final(self, error: Exception) -> None:
        """Raise if no other method could succeed: the loss is invalid, or memory ran out."""
        if isinstance(error, ProbeError) and not isinstance(error, SecondDerivativeError):
            raise error
        if out_of_memory(error):
            raise ProbeError(
                f"out of memory in a product by {self._method.name}, with up to {self._memory:.3g} bytes for cached "
                f"graphs ({reason(error)}): pass a smaller memory=, or make the batches smaller"
            ) from error

    def _product(self, rows: Tensor) -> Tensor:
        """Return the weighted sum of the products of all batches."""
        total: Tensor | None = None
        for at in self._objective.passes():
            total = self._plus_batch(total, at, rows)
        assert total is not None  # there is at least one batch
        return total

    def _product_by_fallback(self, rows: Tensor, error: Exception) -> Tensor:
        """Return the product by the first fallback that works, after the current method raised `error`."""
        failed, width, fallbacks = self._method, self._width, self._fallbacks
        why = f"{failed.name} cannot take products here ({reason(error)})"
        if failed.name != self._default and not self._fallback_reason:
            raise ProbeError(
                f"method={why}: use method={self._default!r}, which falls back to other methods"
            ) from error
        for index, method in enumerate(fallbacks, 1):
            # column by column: torch lacks batching rules for some layers
            self._method, self._width, self._fallbacks = method, 1, fallbacks[index:]
            if self._cache is not None:
                self._cache, self._free = {}, self._memory
            try:
                found = self._product(rows)
            except Exception:  # the first error names the cause
                continue
            if not all_finite(found) or (isinstance(error, ArithmeticError) and self._unit > _UNSETTLED):
                continue  # differences that grow as the step shrinks: there is no second derivative
            self._fallback_reason = why
            self._objective.replaced[failed] = method.name
            return found
        self._method, self._width, self._fallbacks = failed, width, fallbacks
        if self._cache is not None:  # without the graphs of the last fallback
            self._cache, self._free = {}, self._memory
        raise error

    def _plus_batch(self, total: Tensor | None, at: BatchEvaluation, rows: Tensor) -> Tensor:
        """Add the weighted product of one batch, by its cached graph if there is one."""
        cache = self._cache
        product = cache.get(at.index) if cache is not None else None
        keep = product is not None
        if product is None:
            product = self._prepare(at)
            keep = cache is not None and self._fits(product)
            if cache is not None and keep:
                cache[at.index] = product
        first, begin = total is None, 0
        for chunk in torch.split(rows, self._width):
            end = begin + len(chunk)
            part = product.multiply(chunk, keep or end < len(rows))
            if at.weight != 1:
                part.mul_(at.weight)  # a new tensor
            if total is None:
                if len(chunk) == len(rows):
                    return part
                total = part.new_empty(rows.shape)  # no second copy of all products
            target = total[begin:end]
            target.copy_(part) if first else target.add_(part)
            begin = end
        assert total is not None
        return total

    def _prepare(self, at: BatchEvaluation) -> BatchProduct:
        """Prepare the product of one batch; where that costs one gradient, record its time."""
        method = self._method
        begun = now(self._objective.device)
        product = method.prepare(self._objective, at)
        if method.is_gradient:
            self._gradient.record(at.index, now(self._objective.device) - begun)
        if method.check is not None:
            method.check(self._objective)
        if method.unit is not None and math.isnan(self._unit):
            found = method.unit(self._objective, at)
            self._unit, self._rounding = found.unit, found.rounding
        return product

    def _fits(self, product: BatchProduct) -> bool:
        """Reserve memory for one more graph and return True, or return False where it does not fit."""
        if (size := graph_bytes(product)) > self._free:
            self._clear_in_train_mode()
            return False
        self._free -= size
        return True

    def _clear_in_train_mode(self) -> None:
        """Drop all cached graphs in train mode: each batch changes the buffers of the next, so all or none are kept."""
        if self._objective.mode == "train" and self._cache:
            self._cache.clear()
            self._free = -1.0


def reason(error: Exception) -> str:
    """Return an error as one short line.

    Args:
        error: The error.

    Returns:
        Its type and the first 160 characters of its message.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that memory ran out, so that the same method may succeed another time.

    Args:
        error: An error of torch on a device or on the CPU, or of Python.

    Returns:
        True if memory ran out.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
