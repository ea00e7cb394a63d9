"""Trace and Frobenius norm: exact on a Krylov space, sampled by fresh random signs on what it leaves."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.spectrum.block_krylov import Array, BlockKrylov
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate, root_estimate

__all__ = ["Complement", "trace_and_frobenius"]

_FIRST_LOOK: Final = 10  # samples
_MARGIN: Final = 1.25  # in units of 1/sqrt(m), for the error of a standard error from m samples
_LEAP: Final = 4  # the next look comes at most so many times later
_CHUNK: Final = 8  # products by which the space grows at a time
_BLOCK_NUMBERS: Final = 2**25  # entries of a block of probes


class Complement:
    r"""Random probes of :math:`B = PAP`, with :math:`P = I - QQ^\top` for a Krylov basis Q.

    As the images :math:`AQ` are stored,

    .. math:: \mathrm{tr} A = \mathrm{tr}\, Q^\top A Q + \mathrm{tr} B, \qquad
              \lVert A\rVert_F^2 = 2 \lVert AQ\rVert_F^2 - \lVert Q^\top A Q\rVert_F^2 + \lVert B\rVert_F^2

    hold exactly for any orthonormal Q, converged or not. With independent signs :math:`z_i = \pm 1` that know
    nothing of Q, :math:`z^\top B z` and :math:`|Bz|^2` have the means :math:`\mathrm{tr} B` and
    :math:`\lVert B\rVert_F^2`. (Probes that Q was grown from would have nothing left in the complement, and the
    estimate would be zero.)
    The space may grow later: A Q is known, so old probes follow it without a product.

    Source:
        R. Meyer, C. Musco, C. Musco, D. Woodruff (2021), Hutch++: optimal stochastic trace estimation; M. Hutchinson
        (1990), Commun. Stat. Simul. Comput. 19(2), 433-450.
    """

    def __init__(self, operator: SymmetricOperator, space: BlockKrylov, generator: torch.Generator) -> None:
        self._operator = operator
        self._space = space
        self._generator = generator
        self._probes: list[Tensor] = []  # (m, n) each, P z as it was when they were multiplied
        self._images: list[Tensor] = []
        self._seen: list[int] = []  # dimensions of Q that they know of
        self._known: list[tuple[Array, Array] | None] = []  # their forms z'Bz and |Bz|^2, once they were asked for
        self.samples = 0

    def draw(self, count: int) -> None:
        """Multiply `count` fresh probes."""
        width = max(1, min(count, _BLOCK_NUMBERS // self._operator.size))
        for begin in range(0, count, width):
            Z = _signs(min(width, count - begin), self._operator.size, self._generator).to(self._space.basis)
            Z = Z - (Z @ self._space.basis.mT) @ self._space.basis
            self._probes.append(Z)
            self._images.append((self._operator @ Z.mT).mT)
            self._seen.append(self._space.dimension)
            self._known.append(None)
        self.samples += count

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Trace and squared Frobenius norm of A."""
        forms, squares = self._forms()
        T = self._space.projected
        inside = float(np.trace(T))
        images = self._space.images
        outside = 2 * float(torch.linalg.vector_norm(images, dtype=torch.float64)) ** 2 - float(np.square(T).sum())
        square = mean_estimate(squares)
        square = replace(square, low=max(square.low, 0.0))  # the norm is at least what is known of it
        return _shifted(mean_estimate(forms), inside), _shifted(square, outside)

    def _forms(self) -> tuple[Array, Array]:
        """The forms z'Bz and |Bz|^2 of every probe, for the space as it is now."""
        found = [self._forms_of(block) for block in range(len(self._probes))]
        return np.concatenate([forms for forms, _ in found]), np.concatenate([squares for _, squares in found])

    def _forms_of(self, block: int) -> tuple[Array, Array]:
        """The same of one block of probes; only what a space that has grown changes is computed anew."""
        seen, known = self._seen[block], self._known[block]
        if known is not None and seen == self._space.dimension:
            return known
        Z, Y = self._probes[block], self._images[block]
        if seen < self._space.dimension:
            new, images = self._space.basis[seen:], self._space.images[seen:]
            share = Z @ new.mT
            Z, Y = Z - share @ new, Y - share @ images
            self._probes[block], self._images[block], self._seen[block] = Z, Y, self._space.dimension
        rest = Y - (Y @ self._space.basis.mT) @ self._space.basis
        pair = torch.stack([(Z.double() * Y.double()).sum(1), rest.double().square().sum(1)]).cpu().numpy()
        self._known[block] = found = (pair[0], pair[1])
        return found


def trace_and_frobenius(
    operator: SymmetricOperator,
    space: BlockKrylov,
    *,
    rel: float,
    max_products: int,
    generator: torch.Generator,
    decide: Collection[str] = ("trace", "frobenius"),
) -> tuple[Estimate, Estimate]:
    r"""The trace and the Frobenius norm of A, until their standard errors are small enough.

    Looking after every sample stops on lucky ones, and intervals then cover too seldom. Here one looks after
    ten samples, predicts from their deviation s how many are needed, with the margin
    :math:`1 + 1.25/\sqrt m` for the error of s itself, and looks again there. Before, the space is grown as
    long as that saves more probes than it costs products.

    Args:
        operator: A, `(n, n)`.
        space: A Krylov space of A, of any dimension; it may come out larger.
        rel: The standard error to reach, relative to :math:`\max(|\mathrm{tr} A|, \lVert A\rVert_F)` for the trace and
            to the norm for the norm.
        max_products: The budget, at least 2.
        generator: On the CPU, of the probes; the j-th depends on nothing else.
        decide: Which of `trace` and `frobenius` must meet `rel`.

    Returns:
        Trace and Frobenius norm. `converged` says whether each met `rel`.

    Raises:
        ProbeError: `max_products` is below 2.

    Source:
        Checked by `test_the_interval_covers_the_truth_with_the_stopping_rule_on`.
    """
    if max_products < 2:
        raise ProbeError(f"{max_products} random probes give no standard error, need at least 2: raise the budget")
    before = operator.products
    rest = Complement(operator, space, generator)
    growing = True
    look = min(_FIRST_LOOK, max_products)
    while True:
        if space.dimension >= operator.size:
            return _exact(space)
        rest.draw(look - rest.samples)
        missing = _missing(rest, rel, decide)
        left = max_products - (operator.products - before)
        while growing and missing > _CHUNK and left > _CHUNK and space.dimension + _CHUNK <= operator.size:
            _grow(space, _CHUNK)
            left = max_products - (operator.products - before)
            fewer = _missing(rest, rel, decide)
            growing, missing = missing - fewer >= _CHUNK, fewer
        if space.dimension >= operator.size:
            continue
        if missing <= 0 or left <= 0:
            return _judged(rest, rel, operator.products - before)
        if (whole := operator.size - space.dimension) <= min(missing, left):
            _grow(space, whole)  # the whole matrix costs no more than the probes that are missing
            continue
        look = rest.samples + min(missing, left, (_LEAP - 1) * rest.samples)


def _grow(space: BlockKrylov, products: int) -> None:
    """Take so many more products into the space."""
    goal = space.dimension + products
    while space.dimension < goal:
        space.step(goal - space.dimension)


def _missing(rest: Complement, rel: float, decide: Collection[str]) -> int:
    """How many samples are still needed; 0 or less where none is."""
    trace, square = rest.estimates()
    norm = root_estimate(square)
    targets = {"trace": rel * max(abs(trace.value), norm.value), "frobenius": rel * norm.value}
    found = {"trace": trace, "frobenius": norm}
    return max(_needed(found[name], targets[name]) for name in decide) - rest.samples


def _needed(estimate: Estimate, target: float) -> int:
    """Samples at which the standard error, with its margin, would meet the target."""
    if estimate.stderr * _margin(estimate.samples) <= target:
        return 0
    deviation, most = estimate.stderr * math.sqrt(estimate.samples), 10**9
    if not target > deviation * _margin(most) / math.sqrt(most):
        return most
    x = deviation / target  # = sqrt(m) / (1 + _MARGIN / sqrt(m))
    return max(estimate.samples + 1, math.ceil(((x + math.sqrt(x * x + 4 * _MARGIN * x)) / 2) ** 2))


def _margin(samples: int) -> float:
    return 1 + _MARGIN / math.sqrt(samples)


def _judged(rest: Complement, rel: float, products: int) -> tuple[Estimate, Estimate]:
    """Both estimates, with their cost and whether they met `rel`."""
    trace, square = rest.estimates()
    norm = root_estimate(square)
    size = rel * max(abs(trace.value), norm.value)
    return (
        replace(trace, products=products, converged=_needed(trace, size) == 0),
        replace(norm, products=products, converged=_needed(norm, rel * norm.value) == 0),
    )


def _exact(space: BlockKrylov) -> tuple[Estimate, Estimate]:
    """Both numbers from the whole matrix."""
    T = space.projected
    return (
        exact_estimate(float(np.trace(T)), products=space.dimension),
        exact_estimate(float(np.linalg.norm(T)), products=space.dimension),
    )


def _shifted(estimate: Estimate, by: float) -> Estimate:
    """An estimate with an exact number added."""
    return replace(estimate, value=estimate.value + by, low=estimate.low + by, high=estimate.high + by)


def _signs(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random signs `(count, n)`, drawn one probe after the other."""
    drawn = [torch.randint(2, (size,), generator=generator, dtype=torch.int8) for _ in range(count)]
    return torch.stack(drawn).double() * 2 - 1
