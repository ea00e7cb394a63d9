"""Tracking of the largest eigenvalue along a run, at about three products per evaluation."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.eigenvalues.extreme_pairs import cut, eigenpairs, grow, restart_dimensions
from lossscope.probes.eigenvalues.results import EigenPairs, SpectrumEstimate
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.eigenvalues.rounding_cause import rounding_cause
from lossscope.probes.eigenvalues.start_block import StartBlock, start_block
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.sums import dot

__all__ = ["EigenTracker"]

_FEWEST: Final = 2  # vectors kept: with two, a crossing is detected when it happens
_MOST: Final = 5
_FADING: Final = 0.1  # ratio of the weights of successive vectors in the next start vector
_RANDOM_SHARE: Final = 0.1  # random part of the next start vector, so that new directions can grow over evaluations
_CLOSE: Final = 0.8  # a kept eigenvalue above this share of the largest may overtake it
_REMEASURED: Final = 8  # evaluations after which the error of products is measured again
_CHANGED: Final = 2.0  # and ratio of two eigenvalues from which on it is measured earlier
_SAME: Final = 0.5  # overlap above which two top vectors are the same eigenvector


class EigenTracker:
    r"""Tracker of the largest eigenvalue of an operator that changes little between evaluations.

    An evaluation starts from the top vectors of the last one, with weights 1, 0.1, 0.01, ... and a small random part,
    and takes products until the residual of the largest Ritz value is at most `rel` times the largest absolute one.
    Some eigenvalue then lies within the residual, however the operator has changed. At the first evaluation, which
    starts from a random vector and continues until no eigenvalue can lie further out, it is the largest one at 95 %
    confidence. Later this is likely, not proven: vectors are passed on between evaluations, so an eigenvalue that
    approaches the largest is amplified many times before it overtakes, and a missed one is found some evaluations
    later.

    The rounding of products is part of the residual. It is measured by one product in another precision at the first
    evaluation, at every eighth after it, and where the eigenvalue has changed by a factor of two since.

    Args:
        rel: The residual to reach, relative to the largest absolute Ritz value.
        max_products: Budget of products per evaluation.
        seed: Seed of the random vectors.

    Raises:
        ProbeError: `rel` or `max_products` is out of range.

    Example:
        >>> from lossscope.probes.operators.base import from_matrix
        >>> tracker = EigenTracker(rel=0.01)
        >>> first = tracker.measure(from_matrix(torch.diag(torch.arange(1.0, 101.0) ** 2)))
        >>> again = tracker.measure(from_matrix(torch.diag(1.01 * torch.arange(1.0, 101.0) ** 2)))
        >>> again.products, bool(again.top.converged[0])
        (3, True)
    """

    def __init__(self, rel: float = 0.03, *, max_products: int = 64, seed: int = 0) -> None:
        if not 0 < rel < 1:
            raise ProbeError(f"rel must be between 0 and 1, got {rel:g}")
        if max_products < 1:
            raise ProbeError(f"max_products must be at least 1, got {max_products}")
        self.crossings = 0  # evaluations at which another eigenvector became the top one
        self._rel = rel
        self._max_products = max_products
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: Tensor | None = None  # (n, j), the last top vectors
        self._keep = _FEWEST
        self._evaluations = 0
        self._last_measured = 0  # evaluation at which the error of products was measured
        self._error = 0.0  # that error
        self._measured_at = math.nan  # largest absolute eigenvalue then

    def measure(self, operator: SymmetricOperator) -> SpectrumEstimate:
        """Measure the largest eigenvalue at the current parameters.

        Args:
            operator: `(n, n)`, of the same size at all evaluations.

        Returns:
            An estimate with one pair in `top`; all other quantities are None.

        Raises:
            ProbeError: the size or the dtype has changed, or a product is not finite.
        """
        begun, before = time.perf_counter(), operator.products
        with operator.cached():
            space, found = self._cold(operator) if self._kept is None else self._warm(operator, self._kept)
            self._evaluations += 1
            pairs = eigenpairs(space, found, self._keep, self._rel, largest=True)
            del space
            self._update(pairs)
        cause = rounding_cause(operator, found.rounding, found.scale, self._rel)
        seconds = time.perf_counter() - begun
        gradients = seconds / operator.gradient_seconds if operator.gradient_seconds > 0 else math.nan
        top = replace(_first(pairs, self._rel * found.scale), cause=cause)
        return SpectrumEstimate(
            top,
            None,
            None,
            None,
            None,
            operator.products - before,
            seconds,
            gradients,
            "lossscope",
            operator.method,
            () if bool(top.converged[0]) else ("top",),
            top.estimate(0).cause,
        )

    def _cold(self, operator: SymmetricOperator) -> tuple[BlockKrylov, Ritz]:
        """Run the first evaluation: from a random vector, until no eigenvalue can lie further out."""
        start = start_block(operator, 1, None, self._generator)
        for _ in range(2):  # a second time with the rounding that was measured
            grow(
                start,
                top=1,
                bottom=0,
                rel=self._rel,
                max_products=self._max_products,
                steps=0,
                dimensions=restart_dimensions(operator.size, 1),
            )
            self._measure_rounding(start.space, ritz(start.space, start.random))
        return start.space, ritz(start.space, start.random)

    def _warm(self, operator: SymmetricOperator, kept: Tensor) -> tuple[BlockKrylov, Ritz]:
        """Run a later evaluation: from the kept vectors, until the residual is small enough."""
        space = BlockKrylov(operator, self._start(operator, kept)[None], self._generator)
        for _ in range(2):
            self._grow_warm(space)
            self._measure_rounding(space, ritz(space, space.start))
        return space, ritz(space, space.start)

    def _grow_warm(self, space: BlockKrylov) -> None:
        """Take products until the residual is small enough, or no larger than their rounding."""
        dimensions = restart_dimensions(space.size, 1)
        while space.dimension < space.size and space.products < self._max_products:
            if space.dimension:
                found = ritz(space, space.start)
                residual = found.residuals[-1] - found.rounding
                if residual <= max(self._rel * found.scale - found.rounding, found.rounding):
                    return
            if space.dimension >= dimensions and space.width:
                cut(StartBlock(space, space.start), 1, 0)
            space.step(1)

    def _measure_rounding(self, space: BlockKrylov, found: Ritz) -> None:
        """Measure the error of products, or keep the last one while eigenvalue and time are near those it was for."""
        if space.measured_error:
            return
        change, age = found.scale / self._measured_at, self._evaluations - self._last_measured
        if age < _REMEASURED and 1 / _CHANGED < change < _CHANGED:
            space.raise_error(self._error * max(1.0, change))
            return
        space.measure_rounding(found.coefficients[:, -1:])
        if space.measured_error:
            self._error, self._measured_at = space.measured_error, found.scale
            self._last_measured = self._evaluations

    def _start(self, operator: SymmetricOperator, kept: Tensor) -> Tensor:
        """Return the start vector: the kept vectors plus a small random one."""
        n = operator.length
        if len(kept) != n or kept.dtype != operator.dtype:
            raise ProbeError(
                f"operator must have size {len(kept)} and {kept.dtype} as before, got {n} and {operator.dtype}: "
                "use a new EigenTracker for it"
            )
        fading = torch.tensor([_FADING**i for i in range(kept.shape[1])], dtype=kept.dtype, device=kept.device)
        drawn = operator.normal(self._generator)
        return kept @ fading * (math.sqrt(operator.size) / _RANDOM_SHARE) + drawn.to(kept)

    def _update(self, pairs: EigenPairs) -> None:
        """Keep vectors for the next evaluation, more of them if eigenvalues are close or have crossed."""
        new, old = pairs.vectors, self._kept
        crossed = old is not None and abs(float(dot(old[:, 0], new[:, 0]))) < _SAME
        self.crossings += crossed
        close = int((pairs.values > _CLOSE * pairs.values[0]).sum())
        self._keep = min(_MOST, max(_FEWEST, close + 1, self._keep + 1 if crossed else self._keep - 1))
        self._kept = new.clone()


def _first(pairs: EigenPairs, bound: float) -> EigenPairs:
    """Return the outermost pair only, bounded by its residual."""
    residual = pairs.residuals[:1]
    return EigenPairs(pairs.values[:1], pairs.vectors[:, :1], residual, residual, residual <= bound)
