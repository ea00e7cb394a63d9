"""Following the largest eigenvalue along a run for about three products an evaluation."""

from __future__ import annotations

import math
import time
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.spectrum.block_krylov import BlockKrylov, start_block
from lossscope.probes.spectrum.extreme_pairs import eigenpairs, grow
from lossscope.probes.spectrum.results import EigenPairs, SpectrumEstimate
from lossscope.probes.spectrum.ritz import Ritz, ritz

__all__ = ["EigenTracker"]

_FEWEST: Final = 2  # vectors kept: with the second one a crossing is seen when it happens
_MOST: Final = 5
_FADING: Final = 0.1  # each kept vector enters the next start with a tenth of the weight of the one before
_RANDOM_SHARE: Final = 0.1  # of the next start, so that what was never seen can grow from evaluation to evaluation
_CLOSE: Final = 0.8  # a kept value above this part of the largest may overtake it
_SAME: Final = 0.5  # overlap of two top vectors that are the same one


class EigenTracker:
    r"""The largest eigenvalue of an operator that changes little from evaluation to evaluation.

    An evaluation starts from the top vectors of the last one, with weights 1, 0.1, 0.01, ... and a small random part,
    and takes products until the residual of the largest Ritz value is at most `rel` times the largest absolute one.
    Some eigenvalue then lies within the residual, whatever has happened since. That it is the largest one is certain
    at 95 % at the first evaluation, which starts from a random vector and goes on until no eigenvalue can lie further
    out. After that it is likely, not proven: vectors are carried on from evaluation to evaluation, so an eigenvalue
    that comes near has been amplified many times before it overtakes, and one that was missed is seen some evaluations
    later.

    Args:
        rel: The residual to reach, relative to the largest absolute Ritz value.
        max_products: The most that an evaluation may spend.
        seed: Of the random parts.

    Raises:
        ProbeError: `rel` or `max_products` is out of its range.

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
            raise ProbeError(f"rel={rel:g} is out of range, need 0 < rel < 1")
        if max_products < 1:
            raise ProbeError(f"max_products={max_products} is too few, need at least 1")
        self.crossings = 0  # evaluations at which another eigenvector had become the top one
        self._rel = rel
        self._max_products = max_products
        self._generator = torch.Generator().manual_seed(seed)
        self._kept: Tensor | None = None  # (n, j), the last top vectors
        self._keep = _FEWEST

    def measure(self, operator: SymmetricOperator) -> SpectrumEstimate:
        """The largest eigenvalue at the present parameters.

        Args:
            operator: `(n, n)`, of the same size at all evaluations.

        Returns:
            An estimate of which `top` alone is filled, with one pair.

        Raises:
            ProbeError: the size or the dtype has changed, or a product is not finite.
        """
        begun, before = time.perf_counter(), operator.products
        with operator.cached():
            space, found = self._cold(operator) if self._kept is None else self._warm(operator, self._kept)
            pairs = eigenpairs(space, found, self._keep, self._rel, largest=True)
        self._note(pairs)
        seconds = time.perf_counter() - begun
        gradients = seconds / operator.gradient_seconds if operator.gradient_seconds > 0 else math.nan
        top = _first(pairs, self._rel * found.scale)
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
        )

    def _cold(self, operator: SymmetricOperator) -> tuple[BlockKrylov, Ritz]:
        """The first evaluation: from a random vector, until no eigenvalue can lie further out."""
        start = start_block(operator, 1, None, self._generator)
        grow(start, top=1, bottom=0, rel=self._rel, max_products=self._max_products, steps=0)
        return start.space, ritz(start.space, start.random)

    def _warm(self, operator: SymmetricOperator, kept: Tensor) -> tuple[BlockKrylov, Ritz]:
        """A later evaluation: from the last vectors, until the residual is small enough."""
        space = BlockKrylov(operator, self._start(operator, kept)[None], self._generator)
        while True:
            space.step(1)
            found = ritz(space, space.start)
            met = found.residuals[-1] <= self._rel * found.scale
            if met or space.dimension >= min(operator.size, self._max_products):
                return space, found

    def _start(self, operator: SymmetricOperator, kept: Tensor) -> Tensor:
        """The kept vectors, far above a random one."""
        n = operator.size
        if len(kept) != n or kept.dtype != operator.dtype:
            raise ProbeError(
                f"the operator has size {n} and {operator.dtype}, was {len(kept)} and {kept.dtype}: "
                "make a new EigenTracker for it"
            )
        fading = torch.tensor([_FADING**i for i in range(kept.shape[1])], dtype=kept.dtype, device=kept.device)
        drawn = torch.randn(n, generator=self._generator, dtype=torch.float64)
        return kept @ fading * (math.sqrt(n) / _RANDOM_SHARE) + drawn.to(kept)

    def _note(self, pairs: EigenPairs) -> None:
        """Keep the vectors for the next evaluation: more of them where eigenvalues are close or have crossed."""
        new, old = pairs.vectors, self._kept
        crossed = old is not None and abs(float(old[:, 0] @ new[:, 0])) < _SAME
        self.crossings += crossed
        close = int((pairs.values > _CLOSE * pairs.values[0]).sum())
        self._keep = min(_MOST, max(_FEWEST, close + 1, self._keep + 1 if crossed else self._keep - 1))
        self._kept = new.clone()


def _first(pairs: EigenPairs, asked: float) -> EigenPairs:
    """The outermost pair alone, bounded by its residual."""
    residual = pairs.residuals[:1]
    return EigenPairs(pairs.values[:1], pairs.vectors[:, :1], residual, residual, residual <= asked)
