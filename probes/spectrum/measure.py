"""The door to a spectrum: ends, trace, norm and density of a symmetric operator, from one Krylov space."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.spectrum.block_krylov import StartBlock, start_block
from lossscope.probes.spectrum.density import SpectralDensity, spectral_density
from lossscope.probes.spectrum.extreme_pairs import WHOLE, eigenpairs, grow
from lossscope.probes.spectrum.results import SpectrumEstimate
from lossscope.probes.spectrum.ritz import ritz
from lossscope.probes.spectrum.trace_and_norm import trace_and_frobenius

__all__ = ["QUANTITIES", "SpectrumRequest", "least_products", "measure_spectrum"]

_SPACE: Final = 4  # dimensions of the smallest space
_SAMPLES: Final = 2  # random vectors that give a standard error
_PROBES: Final = 10  # products that are kept for the probes at least
_PROBES_SHARE: Final = 3  # and the part of the budget, one third


@dataclass(frozen=True)
class SpectrumRequest:
    """What is asked for."""

    wanted: frozenset[str]
    top: int
    bottom: int
    rel: float
    trace_rel: float
    max_products: int
    seed: int

    @property
    def probes(self) -> tuple[str, ...]:
        """The quantities that random probes give."""
        return tuple(name for name in ("trace", "frobenius") if name in self.wanted)

    @property
    def pairs(self) -> tuple[int, int]:
        """Pairs wanted at the upper and at the lower end."""
        return self.top * ("top" in self.wanted), self.bottom * ("bottom" in self.wanted)

    @property
    def krylov(self) -> bool:
        """Whether anything is read off the Krylov space itself."""
        return bool(self.wanted & {"top", "bottom", "density"})

    @property
    def least(self) -> int:
        """Dimensions of the space that hold all pairs asked for."""
        return max(sum(self.pairs) + 1, _SPACE)

    def for_the_space(self, size: int) -> int:
        """The part of the budget that the space may take before the probes; all that a small one needs."""
        if size <= min(WHOLE, self.max_products):
            return size
        kept = max(_PROBES, self.max_products // _PROBES_SHARE) if self.probes else 0
        return max(self.max_products - kept, self.max_products // 2, min(self.least, self.max_products))

    @property
    def width(self) -> int:
        """Vectors of a block: two where copies of eigenvalues or the density matter."""
        return 2 if max(self.pairs) > 1 or "density" in self.wanted else 1

    @property
    def density_alone(self) -> bool:
        """Whether nothing else says when the space is large enough."""
        return self.wanted == {"density"}

    def check_budget(self, size: int) -> None:
        """Refuse a budget that cannot hold what is asked for."""
        least = least_products(size, pairs=sum(self.pairs), space=self.krylov, probes=bool(self.probes))
        if self.max_products < least:
            raise ProbeError(
                f"max_products={self.max_products} is too few for {', '.join(sorted(self.wanted))} "
                f"(top={self.top}, bottom={self.bottom}), need at least {least}: raise it or ask for less"
            )


def least_products(size: int, *, pairs: int, space: bool, probes: bool) -> int:
    """The fewest products that a measurement can be made with: a space with the pairs and one more, and two probes.

    Args:
        size: `n`.
        pairs: Eigenpairs wanted at both ends together.
        space: Whether anything is read off the Krylov space.
        probes: Whether random probes of the rest are wanted.

    Returns:
        The number; `measure_spectrum` refuses fewer.
    """
    least = min(size, max(pairs + 1, _SPACE)) if space else 0
    return least + (_SAMPLES if probes and size > least else 0)


QUANTITIES: Final = ("top", "bottom", "trace", "frobenius", "density")
_PROBE_STREAM: Final = 0x9E3779B97F4A7C15  # keeps the random probes apart from the start vectors of the same seed
_DENSITY_STEPS: Final = 8  # block steps that a density is given at least
_MORE_STEPS: Final = 4  # and between two looks whether its numbers stand still


def measure_spectrum(
    operator: SymmetricOperator,
    *,
    top: int = 5,
    bottom: int = 1,
    rel: float = 0.01,
    trace_rel: float | None = None,
    max_products: int = 200,
    quantities: Collection[str] | None = None,
    seed: int = 0,
    warm_start: Tensor | None = None,
) -> SpectrumEstimate:
    r"""Both ends of a spectrum with bounds, trace and Frobenius norm with 95 % intervals, and the density.

    All of it comes from one block Krylov space of Gaussian vectors (`BlockKrylov`): eigenvalues as its Ritz
    values with the bounds of `Ritz`, the density as its quadrature (`SpectralDensity`), trace and norm exactly on
    the space and by fresh random signs on what it leaves (`trace_and_frobenius`).

    It stops when everything asked for meets its bound, or when the budget is spent, and then says in `unmet`
    what did not. The bound is `rel` times: the largest :math:`|\theta|` for an eigenvalue (the lower end
    too, so a `lambda_min` near zero is known to `rel` of the spectrum, not of itself);
    :math:`\max(|\mathrm{tr} A|, \lVert A\rVert_F)` for the standard error of the trace;
    :math:`\lVert A\rVert_F` for that of the norm. The density gets at least eight block steps; asked for alone it
    gets as many as make its numbers stand still. Beside other quantities it goes as far as they do, and is named in
    `unmet` where its numbers still move.

    An end of the spectrum is where no eigenvalue lies further out, with 95 % confidence over the random
    start, for any matrix. Where several eigenvalues or the density are asked for, the block has two vectors, so
    double eigenvalues are found. Up to `n = 32`
    everything is exact, copies included, if the budget allows.

    Args:
        operator: `(n, n)`, from `hessian`, `gauss_newton`, `fisher`, `from_matrix`, or of your own.
        top: Eigenpairs at the upper end, at least 1; fewer come back where `n` is smaller.
        bottom: Eigenpairs at the lower end, at least 1.
        rel: Relative accuracy, above 0 and below 1.
        trace_rel: The same for trace and norm where it is to be another.
        max_products: The budget.
        quantities: None for all, or some of `top`, `bottom`, `trace`, `frobenius`, `density`; only these are
            computed and only these decide when to stop.
        seed: Of the start vectors and of the probes. Equal seeds give equal ones to all operators of one
            size (common random numbers).
        warm_start: `(n,)` or `(n, j)`, eigenvectors of a similar operator: fewer products to the same bound. A random
            part is added, and bounds hold as they would without.

    Returns:
        The estimates, None for what was not asked for.

    Raises:
        ProbeError: an argument is out of its range, the budget cannot hold what is asked for, the operator is not
            symmetric, or a product is not finite.

    Example:
        >>> from lossscope.probes.operators.base import from_matrix
        >>> found = measure_spectrum(from_matrix(torch.diag(torch.tensor([4.0, 1.0, -1.0]))), top=1)
        >>> [round(float(x), 6) for x in (found.top.values[0], found.bottom.values[0], found.trace.value)]
        [4.0, -1.0, 4.0]
    """
    _check(top, bottom, (rel, rel if trace_rel is None else trace_rel))
    ask = SpectrumRequest(
        _wanted(quantities),
        min(top, operator.size),
        min(bottom, operator.size),
        rel,
        rel if trace_rel is None else trace_rel,
        max_products,
        seed,
    )
    ask.check_budget(operator.size)
    return _measured(operator, ask, warm_start)


def _measured(operator: SymmetricOperator, ask: SpectrumRequest, warm_start: Tensor | None) -> SpectrumEstimate:
    """Everything asked for, from one Krylov space and from probes on what it leaves."""
    begun, before = time.perf_counter(), operator.products
    trace = frobenius = top = bottom = density = None
    with operator.cached():
        generator = torch.Generator().manual_seed(ask.seed)
        start = start_block(operator, ask.width if ask.krylov else 1, warm_start, generator)
        space, (most, least) = start.space, ask.pairs
        if ask.krylov or operator.size <= min(WHOLE, ask.max_products):
            steps = _DENSITY_STEPS if "density" in ask.wanted else 0
            room = ask.for_the_space(operator.size)
            grow(start, top=most, bottom=least, rel=ask.rel, max_products=room, steps=steps)
        if ask.probes:
            trace, frobenius = trace_and_frobenius(
                operator,
                space,
                rel=ask.trace_rel,
                max_products=max(2, ask.max_products - (operator.products - before)),
                generator=torch.Generator().manual_seed((ask.seed ^ _PROBE_STREAM) % 2**63),
                decide=ask.probes,
            )
        if ask.krylov:
            found = ritz(space, start.random)
            top = eigenpairs(space, found, most, ask.rel, largest=True) if most else None
            bottom = eigenpairs(space, found, least, ask.rel, largest=False) if least else None
            if "density" in ask.wanted:
                density = _density(start, ask.for_the_space(operator.size) if ask.density_alone else 0)
    seconds = time.perf_counter() - begun
    products = operator.products - before
    return _complete(
        SpectrumEstimate(
            top,
            bottom,
            replace(trace, products=products, seconds=seconds) if trace and "trace" in ask.probes else None,
            replace(frobenius, products=products, seconds=seconds) if frobenius and "frobenius" in ask.probes else None,
            density,
            products,
            seconds,
            seconds / operator.gradient_seconds if operator.gradient_seconds > 0 else math.nan,
            "lossscope",
            operator.method,
            (),
        )
    )


def _density(start: StartBlock, room: int) -> SpectralDensity:
    """The density of a space that grows up to `room` until its numbers stand still."""
    space = start.space
    while True:
        half = ritz(space, start.random, dimensions=-(-space.dimension // 2)) if space.dimension > 1 else None
        density = spectral_density(ritz(space, start.random), half, space.size)
        if density.converged or space.dimension >= room:
            return density
        for _ in range(_MORE_STEPS):
            if space.dimension < room:
                space.step(room - space.dimension)


def _complete(found: SpectrumEstimate) -> SpectrumEstimate:
    """The estimate with the names of what did not meet its bound."""
    unmet = [
        name
        for name, pairs in (("top", found.top), ("bottom", found.bottom))
        if pairs is not None and not bool(pairs.converged.all())
    ]
    unmet += [
        name
        for name, estimate in (("trace", found.trace), ("frobenius", found.frobenius))
        if estimate is not None and not estimate.converged
    ]
    unmet += ["density"] if found.density is not None and not found.density.converged else []
    return replace(found, unmet=tuple(unmet))


def _wanted(quantities: Collection[str] | None) -> frozenset[str]:
    """The quantities to compute."""
    wanted = frozenset(QUANTITIES if quantities is None else quantities)
    if not wanted or isinstance(quantities, str):
        raise ProbeError(f"quantities={quantities!r}: pass None for all, or a tuple of {', '.join(QUANTITIES)}")
    if unknown := sorted(wanted - set(QUANTITIES)):
        raise ProbeError(f"quantities {unknown} are unknown: choose from {', '.join(QUANTITIES)}")
    return wanted


def _check(top: int, bottom: int, rels: tuple[float, ...]) -> None:
    """Refuse arguments out of their range."""
    for name, count in (("top", top), ("bottom", bottom)):
        if count < 1:
            raise ProbeError(f"{name}={count} eigenpairs, need at least 1: to have none, name the other quantities")
    for rel in rels:
        if not 0 < rel < 1:
            raise ProbeError(f"rel={rel:g} is out of range, need 0 < rel < 1")
