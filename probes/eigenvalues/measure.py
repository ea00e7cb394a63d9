"""Spectrum of a symmetric operator: extreme eigenpairs, trace, norm and density from one Krylov space."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.eigenvalues.density import SpectralDensity, spectral_density
from lossscope.probes.eigenvalues.extreme_pairs import WHOLE, eigenpairs, grow, measure_rounding, restart_dimensions
from lossscope.probes.eigenvalues.measured_rounding import RandomRounding
from lossscope.probes.eigenvalues.memory_plan import MemoryPlan, Mode
from lossscope.probes.eigenvalues.recurrence_density import recurrence_density
from lossscope.probes.eigenvalues.results import EigenPairs, SpectrumEstimate
from lossscope.probes.eigenvalues.ritz import Ritz, ritz
from lossscope.probes.eigenvalues.rounding_cause import rounding_cause, rounding_remedy
from lossscope.probes.eigenvalues.spectrum_request import SpectrumRequest, spectrum_plan, spectrum_request
from lossscope.probes.eigenvalues.start_block import Space, StartBlock, start_block, start_of_three_vectors
from lossscope.probes.eigenvalues.three_vectors import ThreeVectors
from lossscope.probes.eigenvalues.trace_and_norm import trace_and_frobenius
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["measure_spectrum"]

_PROBE_STREAM: Final = 0x9E3779B97F4A7C15  # makes the random probes independent of the start vectors of the same seed
_DENSITY_STREAM: Final = 0x2545F4914F6CDD1D  # and the recurrences of a density those of a space that was cut
_DENSITY_STEPS: Final = 8  # block steps of a density, at least
_MORE_STEPS: Final = 4  # and between two tests of its convergence


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
    memory: int | str | None = None,
    spill: str | Path | None = None,
    proof: bool = True,
) -> SpectrumEstimate:
    r"""Measure both ends of a spectrum with bounds, trace and Frobenius norm with 95 % intervals, and the density.

    All of it comes from one block Krylov space of Gaussian vectors (`BlockKrylov`): eigenvalues as its Ritz
    values with the bounds of `Ritz`, the density as its quadrature (`SpectralDensity`), trace and norm exactly on
    the space and by independent random signs on its orthogonal complement (`trace_and_frobenius`).

    It stops when every requested quantity meets its bound, or when the budget is spent; `unmet` then names those that
    did not. The bound is `rel` times: the largest :math:`|\theta|` for an eigenvalue (the lower end
    too, so a `lambda_min` near zero is known to `rel` of the spectrum, not of itself);
    :math:`\max(|\mathrm{tr} A|, \lVert A\rVert_F)` for the standard error of the trace;
    :math:`\lVert A\rVert_F` for that of the norm. The density takes at least eight block steps; requested alone it
    takes steps until its derived quantities converge. With other quantities it takes as many steps as they do, and is
    named in `unmet` if it has not converged.

    The bound of the outermost eigenvalue encloses the end of the spectrum: no eigenvalue lies further out, with 95 %
    confidence over the random start, and none beyond three times the bound, with 99.9 %, for any matrix. If several
    eigenvalues or the density are requested, the block has two vectors, so double eigenvalues are found. Up to `n = 32`
    everything is exact, including multiplicities, if the budget allows.

    Args:
        operator: `(n, n)`, from `hessian`, `gauss_newton`, `fisher`, `from_matrix`, or of your own.
        top: Number of eigenpairs at the upper end, at least 1; fewer are returned if `n` is smaller.
        bottom: Number of eigenpairs at the lower end, at least 1.
        rel: Relative accuracy, between 0 and 1.
        trace_rel: Relative accuracy of trace and norm. Default: `rel`.
        max_products: Budget of matrix-vector products.
        quantities: None for all, or some of `top`, `bottom`, `trace`, `frobenius`, `density`; only these are
            computed and only these decide when to stop.
        seed: Seed of the start vectors and of the probes. Equal seeds give equal vectors for all operators of one
            size (common random numbers).
        warm_start: `(n,)` or `(n, j)`, eigenvectors of a similar operator: the bound is reached with fewer products. A
            random part is added, so the bounds stay valid.
        memory: Memory for the vectors of the measurement: bytes, text such as "6GB", or None for half of what is
            available (on the CPU the least of `MemAvailable`, of what the control group leaves and of the limit on the
            address space; on CUDA what is free). If the basis does not fit, a part of it is kept, or none: see below.
        spill: Folder for files with the basis where it does not fit into memory, on the CPU. They vanish at the end.
        proof: False to stop as soon as the residuals of the eigenvalues are `rel`: some eigenvalue then lies within
            the bound of each, but that none lies further out is likely, not proven: `proof` of the result and of its
            rows is false. The gradient is then the warm start of a single eigenvalue of a Hessian, unless one is given.

    **With little memory.** Where the basis fits, nothing depends on `memory`. Otherwise `basis` of the result says what
    was kept. A *spilled basis* lies in files, and gives the same numbers more slowly. A *restarted basis* is cut to its
    outer half whenever it is full; all bounds stay valid. With *three vectors* the Lanczos recurrence runs without a
    basis (`ThreeVectors`): bounds of eigenvalues stay valid, no eigenvalue is counted twice, and eigenvectors are not
    returned; trace and norm come from probes alone, whose intervals are wider. The density is then that of two such
    recurrences (`recurrence_density`), also where a basis was cut.

    Returns:
        The estimates; None for quantities that were not requested.

    Raises:
        ProbeError: an argument is out of range, the budget is too small for the requested quantities, the operator is
            not symmetric, or a product is not finite.

    Example:
        >>> from lossscope.probes.operators.base import from_matrix
        >>> found = measure_spectrum(from_matrix(torch.diag(torch.tensor([4.0, 1.0, -1.0]))), top=1)
        >>> [round(float(x), 6) for x in (found.top.values[0], found.bottom.values[0], found.trace.value)]
        [4.0, -1.0, 4.0]
    """
    accuracy = (rel, rel if trace_rel is None else trace_rel)
    ask = spectrum_request(operator, quantities, (top, bottom), accuracy, max_products, seed=seed, proof=proof)
    if not proof and warm_start is None and ask.krylov and ask.width == 1:
        warm_start = operator.likely_direction()
    return _measured(operator, ask, warm_start, spectrum_plan(operator, ask, memory, spill))


def _measured(
    operator: SymmetricOperator, request: SpectrumRequest, warm_start: Tensor | None, plan: MemoryPlan
) -> SpectrumEstimate:
    """Measure all requested quantities in the mode of a plan."""
    begun, before = time.perf_counter(), operator.products
    with operator.cached():
        three = plan.mode == "three vectors" or (plan.restarts is not None and request.only_density)
        way = _with_three_vectors if three else _with_basis
        parts = way(operator, request, warm_start, plan)
    seconds = time.perf_counter() - begun
    products = operator.products - before
    trace, frobenius = (
        replace(one, products=products, seconds=seconds) if one is not None and name in request.probes else None
        for name, one in (("trace", parts.trace), ("frobenius", parts.frobenius))
    )
    found_all = _complete(
        SpectrumEstimate(
            parts.top,
            parts.bottom,
            trace,
            frobenius,
            parts.density,
            products,
            seconds,
            seconds / operator.gradient_seconds if operator.gradient_seconds > 0 else math.nan,
            "lossscope",
            operator.method,
            (),
            basis=parts.basis,
            memory=plan.memory,
        )
    )
    causes = [one.cause for one in (parts.trace, parts.frobenius) if one is not None and one.cause]
    return _with_cause(found_all, operator, parts.space, request, causes)


@dataclass(frozen=True)
class _Parts:
    """Quantities found, and the space they are from."""

    space: Space
    basis: Mode
    top: EigenPairs | None = None
    bottom: EigenPairs | None = None
    trace: Estimate | None = None
    frobenius: Estimate | None = None
    density: SpectralDensity | None = None


def _with_basis(
    operator: SymmetricOperator, request: SpectrumRequest, warm_start: Tensor | None, plan: MemoryPlan
) -> _Parts:
    """Measure all requested quantities, from one Krylov space and probes on its complement."""
    before = operator.products
    trace = frobenius = top = bottom = density = None
    generator = torch.Generator().manual_seed(request.seed)
    start = start_block(operator, request.width if request.krylov else 1, warm_start, generator, spill=plan.spill)
    space, (most, least) = start.space, request.pairs
    if request.krylov or operator.size <= min(WHOLE, request.max_products):
        steps = _DENSITY_STEPS if "density" in request.wanted else 0
        room = request.space_budget(operator.size)
        if plan.restarts is not None and steps:  # left for the recurrences of a density
            room = max(room // 2, room - 2 * _DENSITY_STEPS)
        cuts = restart_dimensions(operator.size, most + least) if request.only_pairs else plan.restarts
        enclose = partial(
            grow,
            start,
            top=most,
            bottom=least,
            rel=request.rel,
            max_products=room,
            steps=steps,
            dimensions=cuts if plan.restarts is None or cuts is None else min(cuts, plan.restarts),
            proof=request.proof,
        )
        enclose()
        if most or least or request.only_density or space.dimension == operator.size:
            measure_rounding(start, top=most > 0, bottom=least > 0, proof=request.proof)
            enclose()
    if plan.restarts and space.restarts and "density" in request.wanted:  # a space that was cut has no quadrature
        density = _recurrence_density(operator, request, plan, operator.products - before)
    if request.probes:
        taken = operator.products - before
        trace, frobenius = _trace_and_norm(operator, space, request, plan, taken, space.random)
    if request.krylov:
        found = ritz(space, start.random)
        top, bottom = _ends(space, found, request)
        if "density" in request.wanted and density is None:
            density = _density(start, request.space_budget(operator.size) if request.only_density else 0)
    basis: Mode = "restarted basis" if plan.restarts and space.restarts else plan.kept
    return _Parts(space, basis, top, bottom, trace, frobenius, density)


def _trace_and_norm(
    operator: SymmetricOperator,
    space: BlockKrylov,
    request: SpectrumRequest,
    plan: MemoryPlan,
    taken: int,
    rounding: RandomRounding | None,
) -> tuple[Estimate, Estimate]:
    """Return trace and norm by the products that are left; without a whole basis probes are not kept either."""
    return trace_and_frobenius(
        operator,
        space,
        rel=request.trace_rel,
        max_products=max(2, request.max_products - taken),
        generator=torch.Generator().manual_seed((request.seed ^ _PROBE_STREAM) % 2**63),
        decide=request.probes,
        sparing=plan.mode in ("restarted basis", "three vectors"),
        measured=plan.measures_rounding,
        rounding=rounding,
    )


def _ends(space: Space, found: Ritz, request: SpectrumRequest) -> tuple[EigenPairs | None, EigenPairs | None]:
    """Return the requested pairs at both ends."""
    read = partial(eigenpairs, space, found, rel=request.rel, proof=request.proof)
    most, least = request.pairs
    return read(count=most, largest=True) if most else None, read(count=least, largest=False) if least else None


def _with_three_vectors(
    operator: SymmetricOperator, request: SpectrumRequest, warm_start: Tensor | None, plan: MemoryPlan
) -> _Parts:
    """Measure all requested quantities with three vectors, and two for the probes."""
    before = operator.products
    trace = frobenius = top = bottom = density = None
    generator = torch.Generator().manual_seed(request.seed)
    most, least = request.pairs
    room, draw = request.space_budget(operator.size), partial(_recurrence, operator, request, plan, generator)
    both = "density" in request.wanted  # a density takes a second recurrence, and starts that are random alone
    start = draw(None if both else warm_start)
    space = start.space
    if request.krylov:
        enclose = partial(
            grow,
            start,
            top=most,
            bottom=least,
            rel=request.rel,
            max_products=max(room // 2, room - _DENSITY_STEPS) if both else room,
            steps=_DENSITY_STEPS if both else 0,
            proof=request.proof,
        )
        enclose()
        if (most or least) and operator.products - before < room:
            measure_rounding(start, top=most > 0, bottom=least > 0, proof=request.proof)
            enclose()
        found = ritz(space, start.random)
        top, bottom = _ends(space, found, request)
        if both:
            if request.only_density:
                _until_converged(start, room // 2)
            density = recurrence_density([start, _second(draw(None), space, room - space.steps)])
    space.release()
    if request.probes:
        none = BlockKrylov(operator, torch.empty(0, operator.size), generator)
        taken = operator.products - before
        trace, frobenius = _trace_and_norm(operator, none, request, plan, taken, space.random)
    return _Parts(space, "three vectors", top, bottom, trace, frobenius, density)


def _recurrence(
    operator: SymmetricOperator,
    request: SpectrumRequest,
    plan: MemoryPlan,
    generator: torch.Generator,
    warm_start: Tensor | None,
) -> StartBlock[ThreeVectors]:
    """Return the recurrence of the next random vector."""
    return start_of_three_vectors(
        operator, warm_start, generator, request.seed, measures_rounding=plan.measures_rounding
    )


def _second(start: StartBlock[ThreeVectors], first: ThreeVectors, room: int) -> StartBlock[ThreeVectors]:
    """Take as many steps of a second recurrence as the first one has, or `room`; both release their vectors."""
    first.release()
    while start.space.steps < min(first.steps, room) and not start.space.exhausted:
        start.space.step()
    start.space.release()
    return start


def _recurrence_density(
    operator: SymmetricOperator, request: SpectrumRequest, plan: MemoryPlan, taken: int
) -> SpectralDensity:
    """Return the density of two recurrences, in place of that of a space that was cut."""
    generator = torch.Generator().manual_seed((request.seed ^ _DENSITY_STREAM) % 2**63)
    room = max(request.space_budget(operator.size) - taken, 2)
    first = _recurrence(operator, request, plan, generator, None)
    while first.space.steps < min(_DENSITY_STEPS, room // 2) and not first.space.exhausted:
        first.space.step()
    second = _second(_recurrence(operator, request, plan, generator, None), first.space, room - first.space.steps)
    return recurrence_density([first, second])


def _until_converged(start: StartBlock[ThreeVectors], room: int) -> None:
    """Take steps until the density of one recurrence converges, or `room` are taken."""
    space = start.space
    while space.steps < room and not space.exhausted:
        space.step()
        if space.steps >= _DENSITY_STEPS and space.steps % _MORE_STEPS == 0 and recurrence_density([start]).converged:
            return


def _density(start: StartBlock[BlockKrylov], room: int) -> SpectralDensity:
    """Return the density, growing the space up to `room` dimensions until it converges."""
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
    """Add the names of the quantities that did not meet their bounds."""
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


def _with_cause(
    found: SpectrumEstimate, operator: SymmetricOperator, space: Space, request: SpectrumRequest, causes: list[str]
) -> SpectrumEstimate:
    """Add the reason that bounds are not met to the pairs and to the whole where it is the rounding of products."""
    scale = float(np.abs(np.linalg.eigvalsh(space.projected)).max()) if space.dimension else 0.0
    rounding = space.rounding(scale)
    of_pairs = rounding_cause(operator, rounding, scale, request.rel)
    causes = ([of_pairs] if {"top", "bottom"} & {*found.unmet} else []) + causes
    if not any(causes):
        return found
    remedy = rounding_remedy(operator, rounding / scale if scale else 1.0)
    return replace(
        found,
        top=found.top and replace(found.top, cause=of_pairs),
        bottom=found.bottom and replace(found.bottom, cause=of_pairs),
        cause=f"{next(filter(None, causes))}: {remedy}",
    )
