"""Tracking of the largest eigenvalue along a run, at about three products per evaluation."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.eigenvalues.extreme_pairs import cut, eigenpairs, grow, restart_dimensions
from lossscope.probes.eigenvalues.memory_plan import MemoryPlan, byte_count, memory_plan
from lossscope.probes.eigenvalues.results import EigenPairs, SpectrumEstimate
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.eigenvalues.rounding_cause import rounding_cause
from lossscope.probes.eigenvalues.start_block import Space, StartBlock, start_block
from lossscope.probes.eigenvalues.three_vectors import ThreeVectors
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
_WORK: Final = 20  # vectors beside a basis: a product in float64, the kept ones, and others
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
        memory: Memory for the vectors of an evaluation, as in `measure_spectrum`. Where no basis fits, the recurrence
            of `ThreeVectors` is run twice, the second time for the vector from which the next evaluation starts.

    Raises:
        ProbeError: `rel`, `max_products` or `memory` is out of range.

    Example:
        >>> from lossscope.probes.operators.base import from_matrix
        >>> tracker = EigenTracker(rel=0.01)
        >>> first = tracker.measure(from_matrix(torch.diag(torch.arange(1.0, 101.0) ** 2)))
        >>> again = tracker.measure(from_matrix(torch.diag(1.01 * torch.arange(1.0, 101.0) ** 2)))
        >>> again.products, bool(again.top.converged[0])
        (3, True)
    """

    def __init__(
        self, rel: float = 0.03, *, max_products: int = 64, seed: int = 0, memory: int | str | None = None
    ) -> None:
        if not 0 < rel < 1:
            raise ProbeError(f"rel must be between 0 and 1, got {rel:g}")
        if max_products < 1:
            raise ProbeError(f"max_products must be at least 1, got {max_products}")
        self._memory = memory if memory is None else byte_count(memory)
        self._plan: MemoryPlan | None = None  # chosen at the first evaluation, and kept
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
        plan = self._plan = self._plan or self._planned(operator)
        cold = self._kept is None
        with operator.cached():
            pairs, found = self._with_three(operator) if plan.mode == "three vectors" else self._with_basis(operator)
            self._evaluations += 1
            self._update(pairs)
        cause = rounding_cause(operator, found.rounding, found.scale, self._rel)
        seconds = time.perf_counter() - begun
        gradients = seconds / operator.gradient_seconds if operator.gradient_seconds > 0 else math.nan
        proof = cold and found.enclosed(self._rel * found.scale, largest=True)
        top = replace(_first(pairs, self._rel * found.scale), cause=cause, proof=proof)
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
            basis=plan.mode,
            memory=plan.memory,
        )

    def _planned(self, operator: SymmetricOperator) -> MemoryPlan:
        """Return the plan of all evaluations."""
        basis = min(self._max_products, restart_dimensions(operator.size, 1))
        return memory_plan(operator, self._memory, None, work=_WORK, basis=basis, pairs=1)

    @property
    def _dimensions(self) -> int:
        """Dimensions of a basis, at most, for the memory alone."""
        return sys.maxsize if self._plan is None or self._plan.restarts is None else self._plan.restarts

    def _with_basis(self, operator: SymmetricOperator) -> tuple[EigenPairs, Ritz]:
        """Run an evaluation that keeps a basis."""
        space, found = self._cold(operator) if self._kept is None else self._warm(operator, self._kept)
        return eigenpairs(space, found, self._keep, self._rel, largest=True), found

    def _with_three(self, operator: SymmetricOperator) -> tuple[EigenPairs, Ritz]:
        """Run an evaluation that keeps three vectors, and find its top vector by a second run."""
        state, cold = self._generator.get_state(), self._kept is None
        measures = self._plan is not None and self._plan.measures_rounding
        start = self._drawn(operator)
        space = ThreeVectors(operator, start, 0, measures_rounding=measures)
        block = StartBlock(space, space.start, is_warm=self._kept is not None)
        del start
        if cold:
            grow(block, top=1, bottom=0, rel=self._rel, max_products=self._max_products, steps=0)
        else:
            self._grow_warm(space)
        space.release()
        found = ritz(space, space.start)
        pairs = eigenpairs(space, found, 1, self._rel, largest=True)
        after = self._generator.get_state()
        self._generator.set_state(state)
        vector = space.replay(self._drawn(operator), found.coefficients[:, found.outermost(1, largest=True)[0]])
        self._generator.set_state(after)
        return replace(pairs, vectors=vector[:, None]), found

    def _drawn(self, operator: SymmetricOperator) -> Tensor:
        """Return the next start vector: random at the first evaluation, later with the kept vectors."""
        return operator.normal(self._generator) if self._kept is None else self._start(operator, self._kept)

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
                dimensions=min(restart_dimensions(operator.size, 1), self._dimensions),
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

    def _grow_warm(self, space: Space) -> None:
        """Take products until the residual is small enough, or no larger than their rounding."""
        dimensions = min(restart_dimensions(space.size, 1), self._dimensions)
        while space.dimension < space.size and not space.exhausted and space.products < self._max_products:
            if space.dimension:
                found = ritz(space, space.start)
                residual = found.residuals[-1] - found.rounding
                if residual <= max(self._rel * found.scale - found.rounding, found.rounding):
                    return
            if isinstance(space, BlockKrylov) and space.dimension >= dimensions and space.width:
                cut(StartBlock(space, space.start, is_warm=True), 1, 0)
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
        if self._plan is not None and self._plan.mode == "three vectors":
            found = operator.normal(self._generator)
            return found.add_(kept[:, 0], alpha=math.sqrt(n) / _RANDOM_SHARE)
        fading = torch.tensor([_FADING**i for i in range(kept.shape[1])], dtype=kept.dtype, device=kept.device)
        drawn = operator.normal(self._generator)
        return kept @ fading * (math.sqrt(operator.size) / _RANDOM_SHARE) + drawn

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
