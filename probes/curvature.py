"""The door to a spectrum: both ends, trace and norm of a symmetric operator, within one budget of products."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.hutchinson import trace_and_frobenius
from lossscope.probes.lanczos import krylov_space
from lossscope.probes.operator import SymmetricOperator
from lossscope.probes.second_opinion import pyhessian_spectrum
from lossscope.probes.spectrum_estimate import EigenPairs, SpectrumEstimate

__all__ = ["QUANTITIES", "Engine", "measure_spectrum"]

Engine = Literal["lossscope", "pyhessian"]
QUANTITIES: Final = ("top", "bottom", "trace", "frobenius")
_PROBE_STREAM: Final = 0x9E3779B97F4A7C15  # keeps the random probes apart from the start vector of the same seed


def measure_spectrum(
    operator: SymmetricOperator,
    *,
    top: int = 5,
    rel: float = 0.01,
    max_products: int = 200,
    quantities: Collection[str] | None = None,
    seed: int = 0,
    warm_start: Tensor | None = None,
    engine: Engine = "lossscope",
) -> SpectrumEstimate:
    r"""Both ends of a spectrum with residual bounds, the trace and the Frobenius norm with 95 % intervals.

    The ends come from one Krylov space (`krylov_space`), trace and norm from random probes
    (`trace_and_frobenius`). Where both kinds are asked for, the ends may use half of the budget at the most,
    and the probes what is left.

    `rel` is the accuracy to reach: an eigenvalue is converged where its residual
    :math:`|A y - \theta y| \le` `rel` :math:`\cdot \max |\theta|` (the lower end too, so a `lambda_min` near zero
    is known to `rel` times the spectrum, not to `rel` of itself); the trace where its standard error is at
    most `rel` times the larger of its absolute value and :math:`\lVert A\rVert_F`; the norm where its standard
    error is at most `rel` of itself. Whatever does not converge within `max_products` is returned with
    its honest bound and `converged` false.

    A single start vector sees one copy of a multiple eigenvalue: of a large matrix with the eigenvalues 5, 5 and 1 it
    finds 5 and 1. Up to `n = 32` ends, trace and norm are exact, copies included, if the budget allows.

    Args:
        operator: `(n, n)`, from `hessian`, `from_matrix`, `scaled` or of your own.
        top: Eigenpairs at each end, at least 1; fewer come back where `n` is smaller.
        rel: Relative accuracy, above 0 and below 1.
        max_products: The budget.
        quantities: None for all, or some of `top`, `bottom`, `trace`, `frobenius`; only these are computed and
            only these decide when to stop.
        seed: Of the start vector and of the probes. Equal seeds give equal probes to all operators of one
            size (common random numbers).
        warm_start: `(n,)` or `(n, j)`, eigenvectors of a similar operator: fewer products to the same bound.
        engine: `lossscope`, or `pyhessian` for a second opinion by an independent library
            (`top` and `trace` of a Hessian only).

    Returns:
        The estimates, None for what was not asked for.

    Raises:
        ProbeError: an argument is out of its range, or a product is not finite.

    Example:
        >>> from lossscope.probes.operator import from_matrix
        >>> found = measure_spectrum(from_matrix(torch.diag(torch.tensor([4.0, 1.0, -1.0]))), top=1)
        >>> round(float(found.top.values[0]), 6), round(float(found.bottom.values[0]), 6), found.trace.value
        (4.0, -1.0, 4.0)
    """
    _check(top, rel, max_products, engine)
    if engine == "pyhessian":
        if warm_start is not None:
            raise ProbeError("engine='pyhessian' takes no warm_start: leave it out, or use engine='lossscope'")
        return pyhessian_spectrum(
            operator, top=top, rel=rel, max_products=max_products, quantities=quantities, seed=seed
        )
    wanted = _wanted(quantities)
    begun, before = time.perf_counter(), operator.products
    probes = tuple(name for name in ("trace", "frobenius") if name in wanted)
    ends = wanted & {"top", "bottom"}
    pairs: dict[str, EigenPairs] = {}
    trace = frobenius = None
    with operator.held():
        if ends:
            share = max_products // 2 if probes else max_products
            pairs = _ends(operator, ends, top, rel, max(1, share), seed, warm_start)
        if probes:
            left = max_products - (operator.products - before)
            generator = torch.Generator().manual_seed((seed ^ _PROBE_STREAM) % 2**63)
            trace, frobenius = trace_and_frobenius(
                operator, rel=rel, max_samples=left, generator=generator, decide=probes
            )
    return SpectrumEstimate(
        pairs.get("top"),
        pairs.get("bottom"),
        trace if "trace" in probes else None,
        frobenius if "frobenius" in probes else None,
        operator.products - before,
        time.perf_counter() - begun,
        engine,
    )


def _ends(
    operator: SymmetricOperator,
    ends: set[str],
    count: int,
    rel: float,
    max_products: int,
    seed: int,
    warm_start: Tensor | None,
) -> dict[str, EigenPairs]:
    """The Ritz pairs of the ends that were asked for."""
    count = min(count, operator.size)
    space = krylov_space(
        operator,
        top=count if "top" in ends else 0,
        bottom=count if "bottom" in ends else 0,
        rel=rel,
        max_products=max_products,
        generator=torch.Generator().manual_seed(seed),
        warm_start=warm_start,
    )
    return {end: space.pairs(count, rel, largest=end == "top") for end in ends}


def _wanted(quantities: Collection[str] | None) -> set[str]:
    """The quantities to compute."""
    wanted = set(QUANTITIES if quantities is None else quantities)
    if unknown := sorted(wanted - set(QUANTITIES)):
        raise ProbeError(f"quantities {unknown} are unknown: choose from {', '.join(QUANTITIES)}")
    if not wanted or isinstance(quantities, str):
        raise ProbeError(f"quantities={quantities!r}: pass None for all, or a tuple of {', '.join(QUANTITIES)}")
    return wanted


def _check(top: int, rel: float, max_products: int, engine: str) -> None:
    """Refuse arguments out of their range."""
    if top < 1:
        raise ProbeError(f"top={top} eigenpairs, need at least 1: to leave them out, name the other quantities")
    if not 0 < rel < 1:
        raise ProbeError(f"rel={rel:g} is out of range, need 0 < rel < 1")
    if max_products < 4:
        raise ProbeError(f"max_products={max_products} is too few, need at least 4")
    if engine not in get_args(Engine):
        raise ProbeError(f"engine={engine!r} is unknown: use one of {', '.join(get_args(Engine))}")
