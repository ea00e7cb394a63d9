"""Checks of the spectrum engine on matrices and losses whose spectrum is known."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.ritz import ritz
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.selfcheck.check import Place, Reading, check
from lossscope.probes.selfcheck.problems import gaussian, not_none, quadratic, rotated
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.step_tensors.singular_values import singular_spectrum

__all__ = ["SPECTRUM_CHECKS"]

_ROUNDINGS: Final = 200.0  # largest error of a number computed in a Krylov space, in units of eps
_SEEDS: Final = 200
_NOMINAL: Final = 0.95
_SLACK: Final = 0.06  # coverage of 0.93 to 0.98 is specified; 200 seeds scatter by up to 0.02 in one direction


@check("diagonal quadratic", "extreme eigenvalues, trace, norm and negative mass 1/6 are the known ones")
def _quadratic(place: Place) -> Reading:
    known = torch.tensor([-1.0, 0.5, 0.5, 1.0, 1.0, 2.0], dtype=torch.float64)
    found = measure_spectrum(hessian(quadratic(known, place)), top=2)
    errors = {
        "lambda_max": abs(float(not_none(found.top).values[0]) - 2),
        "lambda_min": abs(float(not_none(found.bottom).values[0]) + 1),
        "the trace": abs(not_none(found.trace).value - 4),
        "the Frobenius norm": abs(not_none(found.frobenius).value - 7.5**0.5),
        "the negative mass": abs(not_none(found.negative_mass).value - 1 / 6),
    }
    name = max(errors, key=lambda key: _inf_if_nan(errors[key]))
    return errors[name], _ROUNDINGS * place.eps, f"absolute error, n = 6; the largest: {name}"


@check("eigenvalue bounds", "both ends of a known spectrum lie within their bounds")
def _bounds(place: Place) -> Reading:
    A = rotated(_power_law(150), place)
    known = torch.linalg.eigvalsh(A.cpu().double())
    found = measure_spectrum(from_matrix(A), top=3, bottom=3, rel=1e-3, quantities=("top", "bottom"))
    top, bottom = not_none(found.top), not_none(found.bottom)
    errors = torch.cat([top.values - known.flip(0)[:3], bottom.values - known[:3]]).abs()
    ratio = float((errors / torch.cat([top.bounds, bottom.bounds])).max())
    met = bool(top.converged.all() and bottom.converged.all())
    detail = f"error over bound, 6 eigenvalues, n = 150, {found.products} products"
    return (ratio, 1.0, detail) if met else (float("nan"), 1.0, f"{detail}: rel = 1e-3 was not met")


@check("no ghosts", "a matrix of rank 3 has 9, 4 and 1 once each, then zeros")
def _ghosts(place: Place) -> Reading:
    known = torch.zeros(100, dtype=torch.float64)
    known[:3] = torch.tensor([9.0, 4.0, 1.0])
    return _top_of(known, 6, place)


@check("multiplicity", "an eigenvalue that occurs twice is found twice: 5, 5, 1")
def _multiplicity(place: Place) -> Reading:
    known = torch.ones(60, dtype=torch.float64)
    known[:2] = 5.0
    return _top_of(known, 4, place)


@check("quadrature", "sum w theta^k = v'A^k v for k up to 2m - 1 after m steps")
def _quadrature(place: Place) -> Reading:
    steps, A = 6, rotated(_power_law(50) - 0.1, place)
    v = gaussian(50, seed=9).to(place.dtype).double()
    space = BlockKrylov(from_matrix(A), v[None], torch.Generator().manual_seed(0))
    for _ in range(steps):
        space.step(1)
    found = ritz(space, space.start)
    moment, worst = v, 0.0
    for k in range(2 * steps):
        known = float(v @ moment / (v @ v))
        ours = float(found.weights[0] @ found.values**k)
        worst = max(worst, _inf_if_nan(abs(ours - known)))
        moment = A.cpu().double() @ moment
    return worst, _ROUNDINGS * place.eps, f"absolute error of {2 * steps} moments, norm of A 1, n = 50"


@check("identity", "trace n and norm sqrt(n) lie in their intervals")
def _identity(place: Place) -> Reading:
    n = 100
    found = measure_spectrum(
        from_matrix(torch.eye(n, dtype=place.dtype, device=place.device)), max_products=60, quantities=_SUMS
    )
    error = max(_outside(found.trace, n) / n, _outside(found.frobenius, n**0.5) / n**0.5)
    return error, _ROUNDINGS * place.eps, "relative distance outside the intervals"


@check("intervals", "95 % intervals cover trace and norm in 93 to 98 % of seeds")
def _intervals(place: Place) -> Reading:
    covered = 0
    known = torch.cat([torch.tensor([8.0]), torch.linspace(-1, 1, 99)]).double()
    A = rotated(known, place)
    trace, norm = float(A.cpu().double().trace()), float(A.cpu().double().norm())
    operator = from_matrix(A)
    for seed in range(_SEEDS):
        found = measure_spectrum(operator, rel=0.1, max_products=40, quantities=_SUMS, seed=seed)
        covered += (_outside(found.trace, trace) == 0) + (_outside(found.frobenius, norm) == 0)
    share = covered / (2 * _SEEDS)
    return (
        abs(share - _NOMINAL),
        _SLACK,
        f"distance from 95 %: {covered} of {2 * _SEEDS} cover, one outlier plus bulk, n = 100",
    )


@check("singular values", "a matrix made from known singular values has them")
def _singular(place: Place) -> Reading:
    known = torch.logspace(0, -2, 24, dtype=torch.float64)
    U = torch.linalg.qr(gaussian(24, 24, seed=1))[0]
    V = torch.linalg.qr(gaussian(40, 24, seed=2))[0]
    found = singular_spectrum(((U * known) @ V.mT).to(place.dtype).to(place.device))
    error = float((torch.from_numpy(found.values.copy()) - known).abs().max())
    return error, max(_ROUNDINGS * place.eps, found.error), "absolute error, largest singular value 1, 24 x 40"


_SUMS: Final = ("trace", "frobenius")
SPECTRUM_CHECKS: Final = (
    _quadratic,
    _bounds,
    _ghosts,
    _multiplicity,
    _quadrature,
    _identity,
    _intervals,
    _singular,
)


def _power_law(n: int) -> Tensor:
    """Return the eigenvalues 1, 1/2, 1/3, ... in float64."""
    return 1 / torch.arange(1, n + 1, dtype=torch.float64)


def _top_of(known: Tensor, count: int, place: Place) -> Reading:
    """Compare the largest eigenvalues of a rotated matrix with the known ones."""
    operator = from_matrix(rotated(known, place))
    found = measure_spectrum(operator, top=count, rel=1e-3, quantities=("top",))
    top = not_none(found.top)
    error = float((top.values - known.sort(descending=True).values[:count]).abs().max())
    detail = f"absolute error of the largest {count}, n = {len(known)}, {found.products} products"
    return error, max(_ROUNDINGS * place.eps * float(known.max()), float(top.bounds.max())), detail


def _outside(estimate: Estimate | None, known: float) -> float:
    """Return the distance of the known number from the interval: 0 inside, infinity if the estimate is missing."""
    interval = not_none(estimate)
    if not interval.low <= interval.high:
        return float("inf")
    return max(interval.low - known, known - interval.high, 0.0)


def _inf_if_nan(error: float) -> float:
    """Return the error, infinity if it is nan, so that a missing value counts as the largest error."""
    return float("inf") if error != error else error
