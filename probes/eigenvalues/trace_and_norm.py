"""Trace and Frobenius norm: exact on a Krylov space, with Hutchinson probes on its orthogonal complement."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import Array, BlockKrylov, check_size
from lossscope.probes.eigenvalues.measured_rounding import RandomRounding, random_rounding
from lossscope.probes.eigenvalues.rounding_cause import rounding_cause
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate, root_estimate
from lossscope.probes.sums import row_dots

__all__ = ["Complement", "trace_and_frobenius"]

_FIRST_TEST: Final = 10  # samples before the first test of convergence; fewer never count as converged
_MARGIN: Final = 1.25  # margin for the error of a standard error from m samples, in units of 1/sqrt(m)
_SIDES: Final = 2.0  # length of a side of the 95 % interval, in requested standard errors
_MORE: Final = 1.25  # growth of the number of samples if only the interval is too wide
_LEAP: Final = 4  # largest ratio of the sample counts of two successive tests
_CHUNK: Final = 8  # products by which the space is grown at a time
_SPREAD: Final = 3.0  # standard errors, about, of the rounding of a trace measured with one vector
_COMPARED: Final = 4  # vectors with which the rounding of the whole matrix is measured
_FLOOR: Final = 16.0  # rounding units that it has at least
_WIDTH: Final = 5  # probes of a block
_SMALL: Final = 2**20  # entries of a block of more, short probes
_BLOCK_ENTRIES: Final = 2**25  # largest number of entries of a block of fewer, long probes


@dataclass
class _Block:
    """A block of probes that can follow a space that grows."""

    signs: Tensor  # (m, n) int8
    images: Tensor  # (m, n), products with the signs less their part in the space
    dimension: int  # of the space at the time of the product
    numbers: tuple[Array, Array]  # forms z'Bz and |Bz|^2 of each probe
    known: int  # dimension for which these were computed


class Complement:
    r"""Random probes of :math:`B = PAP`, with :math:`P = I - QQ^\top` for a Krylov basis Q.

    As the space knows the images :math:`AQ = QT + Q_+C`,

    .. math:: \mathrm{tr} A = \mathrm{tr}\, Q^\top A Q + \mathrm{tr} B, \qquad
              \lVert A\rVert_F^2 = 2 \lVert AQ\rVert_F^2 - \lVert Q^\top A Q\rVert_F^2 + \lVert B\rVert_F^2

    hold exactly for any orthonormal Q, converged or not. With random signs :math:`z_i = \pm 1` independent of Q,
    :math:`z^\top B z` and :math:`|Bz|^2` have the means :math:`\mathrm{tr} B` and
    :math:`\lVert B\rVert_F^2`. (Probes from which Q was grown have no component in the complement: the
    estimate would be zero.) While the space may still grow, signs and products are kept, and old probes follow it
    without a product: their parts s in the new vectors are removed from the product as :math:`AQs`, of which
    :math:`Q_+Cs` lies outside. After `settle` only the numbers of each probe are kept.

    Source:
        R. Meyer, C. Musco, C. Musco, D. Woodruff (2021), Hutch++: optimal stochastic trace estimation; M. Hutchinson
        (1990), Commun. Stat. Simul. Comput. 19(2), 433-450.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        space: BlockKrylov,
        generator: torch.Generator,
        *,
        sparing: bool = False,
        measured: bool = True,
        rounding: RandomRounding | None = None,
    ) -> None:
        self._operator = operator
        self._space = space
        self._generator = generator
        self._sparing, self._measured = sparing, measured and rounding is None
        self._kept: list[_Block] | None = None if sparing else []
        self._numbers: list[tuple[Array, Array]] = []  # of the blocks that are not kept
        self._first: tuple[Tensor, Tensor] | None = None
        self._rounding = rounding
        self.samples = 0

    def draw(self, count: int) -> None:
        """Draw and multiply `count` new probes."""
        size = self._operator.size
        most = 1 if self._sparing else max(_SMALL // size, min(_WIDTH, _BLOCK_ENTRIES // size))
        width = max(1, min(count, most))
        for begin in range(0, count, width):
            signs = _signs(min(width, count - begin), self._operator, self._generator)
            Z = self._space.without(signs.to(self._operator.dtype))[0]
            images = (self._operator @ Z.mT).mT
            check_size(images)
            if not self.samples and not begin and self._measured:
                self._keep_first(Z, images)
            forms = row_dots(Z, images).cpu().numpy()
            del Z  # before the images need as much
            numbers = forms, self._squares(images)
            if self._kept is None:
                self._numbers.append(numbers)
            else:
                self._kept.append(_Block(signs, images, self._space.dimension, numbers, self._space.dimension))
            del signs, images
        self.samples += count

    def settle(self) -> None:
        """Keep only the numbers of the probes: the space does not grow any more."""
        if self._kept is not None:
            self._numbers, self._kept = [self._updated(block) for block in self._kept], None

    def rounding(self) -> RandomRounding | None:
        """Return the rounding of products, measured with the first probe if not before; None if that is impossible."""
        if self._first is not None:
            z, image = (one[:, None] for one in self._first)
            self._rounding, self._first = random_rounding(self._operator.product_error(z, image), z), None
        return self._rounding

    def _keep_first(self, Z: Tensor, images: Tensor) -> None:
        """Keep a copy of the first probe and its product; where memory is spared measure their rounding now."""
        if self._sparing:
            self._first = Z[0], images[0]
            self.rounding()
        else:
            self._first = Z[0].clone(), images[0].clone()

    def estimates(self) -> tuple[Estimate, Estimate]:
        """Return estimates of the trace and the squared Frobenius norm of A."""
        forms, squares = self._forms()
        T = self._space.projected
        inside = float(np.trace(T))
        outside = 2 * self._space.image_square - float(np.square(T).sum())
        square = mean_estimate(squares)
        # the part on the space is exact and bounds the norm from below
        square = replace(square, low=max(square.low, 0.0))
        return _shifted(mean_estimate(forms), inside), _shifted(square, outside)

    def _forms(self) -> tuple[Array, Array]:
        """Return the forms z'Bz and |Bz|^2 of every probe, for the current space."""
        found = [*self._numbers, *map(self._updated, self._kept or ())]
        return np.concatenate([forms for forms, _ in found]), np.concatenate([squares for _, squares in found])

    def _updated(self, block: _Block) -> tuple[Array, Array]:
        """Return the forms of a block of probes; if the space has grown since, its products follow."""
        if block.known < self._space.dimension:
            Z, shares = self._space.without(block.signs.to(block.images))
            shares[:, : block.dimension] = 0.0  # the part that was removed before the product
            moved = self._space.outwards(shares.cpu().numpy().T)
            torch.sub(block.images, moved, out=moved)
            forms = row_dots(Z, moved).cpu().numpy()
            del Z
            block.numbers, block.known = (forms, self._squares(moved)), self._space.dimension
        return block.numbers

    def _squares(self, images: Tensor) -> Array:
        """Return |Bz|^2 of probes in the complement, from their products up to parts of these in the space."""
        rest, _ = self._space.without(images)
        found: Array = row_dots(rest, rest).cpu().numpy()
        return found


def trace_and_frobenius(
    operator: SymmetricOperator,
    space: BlockKrylov,
    *,
    rel: float,
    max_products: int,
    generator: torch.Generator,
    decide: Collection[str] = ("trace", "frobenius"),
    sparing: bool = False,
    measured: bool = True,
    rounding: RandomRounding | None = None,
) -> tuple[Estimate, Estimate]:
    r"""Estimate the trace and the Frobenius norm of A to a requested standard error.

    Testing for convergence after every sample stops on lucky ones, and intervals then cover too seldom. Here the first
    test comes after ten samples; their standard deviation s predicts how many are needed, with the margin
    :math:`1 + 1.25/\sqrt m` for the error of s itself, and the next test comes at that number. After the first test the
    space is grown as long as that saves more probes than it costs products; then the first probes are released.

    Args:
        operator: A, `(n, n)`.
        space: A Krylov space of A, of any dimension; it may be grown in place.
        rel: The standard error to reach, relative to :math:`\max(|\mathrm{tr} A|, \lVert A\rVert_F)` for the trace and
            to the norm itself for the norm.
        max_products: Budget of products, at least 2.
        generator: CPU generator of the probes; the j-th probe depends on nothing else.
        decide: Those of `trace` and `frobenius` that must meet `rel`.
        sparing: Take probes one at a time and keep none; the space is not grown.
        measured: False for no product in float64, which needs the memory of fifteen vectors, where memory is spared;
            rounding is then assumed.
        rounding: Rounding of products with random vectors, if it is known; otherwise it is measured with a probe.

    Returns:
        Trace and Frobenius norm; `converged` is True if at least ten samples were drawn, the standard error met `rel`
        with its margin and both sides of the 95 % interval twice that. Their intervals contain the rounding of the
        products, measured with one more product unless it is known, or four where the matrix is known as a whole.

    Raises:
        ProbeError: `max_products` is below 2.

    Source:
        Checked by `test_the_interval_covers_the_truth_with_the_stopping_rule_on`.
    """
    if max_products < 2:
        raise ProbeError(f"max_products must be at least 2 for a standard error, got {max_products}: raise the budget")
    before = operator.products
    rest = Complement(operator, space, generator, sparing=sparing, measured=measured, rounding=rounding)
    growing = not sparing
    goal = min(_FIRST_TEST, max_products)
    while True:
        if space.dimension >= operator.size:
            some = _orthonormal(space.dimension, min(_COMPARED, space.dimension))
            vectors, images = space.mixed(some).mT, space.images_of(some).mT
            measured_now = random_rounding(operator.product_error(vectors, images), vectors)
            return _rounded(_exact(space), operator, measured_now, space.measured_error, rel)
        rest.draw(goal - rest.samples)
        missing = _missing(rest, rel, decide)
        left = max_products - (operator.products - before)
        while growing and missing > _CHUNK and left > _CHUNK and space.dimension + _CHUNK <= operator.size:
            _grow(space, _CHUNK)
            left = max_products - (operator.products - before)
            fewer = _missing(rest, rel, decide)
            growing, missing = missing - fewer >= _CHUNK, fewer
        growing = False
        rest.settle()
        if space.dimension >= operator.size:
            continue
        if missing <= 0 or left <= 0:
            found = _sampled(rest, rel, operator.products - before)
            return _rounded(found, operator, rest.rounding(), space.measured_error, rel)
        whole = operator.size - space.dimension
        if not sparing and whole <= min(missing, left):
            _grow(space, whole)  # the whole matrix costs no more than the missing probes
            continue
        goal = rest.samples + min(missing, left, (_LEAP - 1) * rest.samples)


def _grow(space: BlockKrylov, products: int) -> None:
    """Grow the space by a number of products."""
    goal = space.dimension + products
    while space.dimension < goal:
        space.step(goal - space.dimension)


def _missing(rest: Complement, rel: float, decide: Collection[str]) -> int:
    """Return the number of samples still needed; 0 or less if there are enough."""
    trace, square = rest.estimates()
    norm = root_estimate(square)
    targets = {"trace": rel * max(abs(trace.value), norm.value), "frobenius": rel * norm.value}
    found = {"trace": trace, "frobenius": norm}
    return max(_needed(found[name], targets[name]) for name in decide) - rest.samples


def _needed(estimate: Estimate, target: float) -> int:
    """Return the number of samples at which the error meets the target; 0 if it does now.

    The standard error must meet the target with its margin, and both sides of the 95 % interval twice the target: from
    a few samples a standard error may be small by luck, and the interval accounts for that.
    """
    if estimate.stderr * _margin(estimate.samples) <= target:
        wide = max(estimate.high - estimate.value, estimate.value - estimate.low) > _SIDES * target
        return math.ceil(_MORE * estimate.samples) if wide else 0
    deviation, most = estimate.stderr * math.sqrt(estimate.samples), 10**9
    if not target > deviation * _margin(most) / math.sqrt(most):
        return most
    x = deviation / target  # = sqrt(m) / (1 + _MARGIN / sqrt(m))
    return max(estimate.samples + 1, math.ceil(((x + math.sqrt(x * x + 4 * _MARGIN * x)) / 2) ** 2))


def _margin(samples: int) -> float:
    return 1 + _MARGIN / math.sqrt(samples)


def _sampled(rest: Complement, rel: float, products: int) -> tuple[Estimate, Estimate]:
    """Return both estimates with their cost and convergence."""
    trace, square = rest.estimates()
    norm = root_estimate(square)
    size = rel * max(abs(trace.value), norm.value)
    enough = rest.samples >= _FIRST_TEST
    return (
        replace(trace, products=products, converged=enough and _needed(trace, size) == 0),
        replace(norm, products=products, converged=enough and _needed(norm, rel * norm.value) == 0),
    )


def _exact(space: BlockKrylov) -> tuple[Estimate, Estimate]:
    """Return both quantities exactly, from the whole matrix."""
    T = space.projected
    return (
        exact_estimate(float(np.trace(T)), products=space.dimension),
        exact_estimate(float(np.linalg.norm(T)), products=space.dimension),
    )


def _rounded(
    found: tuple[Estimate, Estimate],
    operator: SymmetricOperator,
    shares: RandomRounding | None,
    known: float,
    rel: float,
) -> tuple[Estimate, Estimate]:
    r"""Widen both intervals by the rounding of the products, measured with some random vectors.

    With E the error of the operator and z random, :math:`n z^\top E z / |z|^2` estimates its trace with the standard
    error :math:`\sqrt2 \lVert E\rVert_F`, and :math:`\sqrt n |E z| / |z|` its Frobenius norm. One vector may be nearly
    orthogonal to an error of rank one, four are not. An error `known` from products with other vectors bounds both from
    below.
    """
    trace, norm_ = found
    if shares is None:
        widths = [operator.assumed_error * norm_.value] * 2
    else:
        n, least = operator.size, _FLOOR * torch.finfo(operator.dtype).eps * norm_.value
        size, along = math.sqrt(n * shares.square), n * shares.form
        widths = [max(along + _SPREAD * size, known) + least, max(_SPREAD * size, known) + least]
    scales = {"the trace": max(abs(trace.value), norm_.value), "the Frobenius norm": norm_.value}
    wide = [
        replace(
            one,
            low=one.low - width,
            high=one.high + width,
            converged=one.converged and width <= rel * scale,
            cause=rounding_cause(operator, width, scale, rel, what),
        )
        for one, width, (what, scale) in zip(found, widths, scales.items(), strict=True)
    ]
    return wide[0], replace(wide[1], low=max(wide[1].low, 0.0))


def _orthonormal(size: int, count: int) -> Array:
    """Return random orthonormal columns `(size, count)`, the same at every call."""
    found: Array = np.linalg.qr(np.random.default_rng(size).standard_normal((size, count)))[0]
    return found


def _shifted(estimate: Estimate, by: float) -> Estimate:
    """Return an estimate shifted by an exact number."""
    return replace(estimate, value=estimate.value + by, low=estimate.low + by, high=estimate.high + by)


def _signs(count: int, operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Draw random signs `(count, n)` int8, one probe after the other."""
    rows = [operator.signs(generator) for _ in range(count)]
    return rows[0][None] if count == 1 else torch.stack(rows)
