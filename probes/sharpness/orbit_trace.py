"""Least trace of the Hessian over all rescalings of a network that keep its function."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from scipy.special import stdtrit
from torch import Tensor

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.orbit import RescalingOrbit
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator
from lossscope.probes.operators.derived import scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.statistics.estimate import Estimate
from lossscope.probes.statistics.propagation import independent_seeds

__all__ = ["LEAST_PRODUCTS", "OrbitTrace", "orbit_trace"]

LEAST_PRODUCTS: Final = 64
_PAIRS: Final = 4  # eigenpairs whose part of the diagonal is taken without probes
_CHANCE: Final = 1e-4  # that noise counts as a negative sum
_LOOSE: Final = 0.3  # share of the errors that holds back the second minimum, so that its sum is too low
_EXACT: Final = 1e-9  # accuracy of the trace where the diagonal was affordable, so that the matrix is
_ZERO: Final = 1e-6  # share of the largest sum that counts as 0
_ROUNDINGS: Final = 100  # units in the last place of 1 by which the loss of the rescaled network may differ
_LISTED: Final = 3  # layers that a reason names


@dataclass(frozen=True)
class OrbitTrace:
    """Least trace over the rescalings of a network."""

    trace: Estimate  # trace at the rescaling found; its lower end is widened by `above`
    above: float  # bound of the height of that trace above the least one; 0 if the diagonal was computed
    factors: Tensor  # (n,) float64, the factors of the parameters there


def orbit_trace(objective: Objective, *, max_products: int = 200, rel: float = 0.02, seed: int = 0) -> OrbitTrace:
    r"""Estimate the least trace of the Hessian over all rescalings of neurons that keep the function.

    .. math:: \min_x \sum_e H_{ee} \, e^{2 x_{r(e)} - 2 x_{w(e)}}

    Parameter e leads from neuron r to neuron w, whose weights are multiplied by :math:`e^{x}` on the way in and divided
    on the way out; see `RescalingOrbit`. The sum is convex in x where the sums of the diagonal are positive, as almost
    everywhere in networks of ReLU and linear layers. For L layers that are rescaled as wholes it is
    :math:`L (\prod_l t_l)^{1/L}`, for a network of two layers :math:`2 \sum_k (A_k B_k)^{1/2}`, with A and B the traces
    of the weights into and out of each neuron.

    The diagonal is estimated from a few eigenpairs and random probes of the rest, and minimized; then the trace at that
    rescaling is measured by new probes, so that it is not biased by the minimization. By how much it may lie above the
    least trace is bounded by a second estimate of the diagonal: what that loses from its own minimum to the rescaling
    found is more than the height on average, as a minimum over noise is too low. Up to `n = max_products / 2` the
    diagonal is computed.

    Args:
        objective: The loss. Its network should be at its balanced point, `objective.with_model(balance(model).model)`:
            gains are folded there, and what is no rescaling of neurons is fixed.
        max_products: Budget of Hessian products, at least 64.
        rel: Stop when the standard error is below `rel` times the value (or the norm, if that is larger).
        seed: Seed of all random vectors.

    Returns:
        The trace. Its interval holds the least trace with 95 % confidence; it has converged if the trace has, and
        `above` is at most 5 `rel` of it.

    Raises:
        ProbeError: Rescalings of some layers are not known or do not keep the loss, a sum of the diagonal is negative
            so that there is no least trace, or the budget is too small.

    Source:
        docs/measures/orbit_trace.md; the case of whole layers follows from the inequality of arithmetic and geometric
        means.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1, False), torch.nn.ReLU(), torch.nn.Linear(1, 1, False))
        >>> loss = lambda model, x: (model(x) - 1).square().mean() / 2
        >>> objective = Objective(net, loss, [torch.ones(1, 1)])
        >>> with objective.at(torch.tensor([5.0, 0.2])):
        ...     round(orbit_trace(objective).trace.value, 5)
        2.0
    """
    if max_products < LEAST_PRODUCTS:
        raise ProbeError(f"max_products must be at least {LEAST_PRODUCTS} for the least trace, got {max_products}")
    begun = time.perf_counter()
    with objective.evaluating():  # which restores the random state that a forward pass moves
        orbit = RescalingOrbit(objective.model, objective.names)
    if orbit.unknown:
        raise ProbeError(f"the rescalings of this network are not all known: {'; '.join(orbit.unknown[:_LISTED])}")
    operator = hessian(objective)
    seeds = independent_seeds(seed, 4)
    with operator.cached():
        factors, above, exact = _least(operator, orbit, max_products // 2, seeds[:3])
        found = measure_spectrum(
            scaled(operator, (-factors).exp().to(operator.device)),
            rel=_EXACT if exact else rel,
            max_products=max_products - operator.products,
            quantities=("trace",),
            seed=seeds[3],
        ).trace
    _require_same_loss(objective, factors.exp())
    assert found is not None  # requested above
    met = found.converged or (exact and found.high - found.low <= 2 * rel * abs(found.value))
    trace = replace(
        found,
        low=found.low - above,
        products=operator.products,
        seconds=time.perf_counter() - begun,
        converged=met and above <= 5 * rel * abs(found.value),
        cause="" if met else found.cause,
    )
    return OrbitTrace(trace, above, factors.exp())


def _least(
    operator: SymmetricOperator, orbit: RescalingOrbit, budget: int, seeds: Sequence[int]
) -> tuple[Tensor, float, bool]:
    """Return the logarithms of all parameters' factors at the least trace, the bound `above`, and if that is exact."""
    if not orbit.size:
        return torch.zeros(operator.size, dtype=torch.float64), 0.0, False
    diagonal = _Diagonal(operator, budget, seeds[0])
    mean, sums = _mean_and_sums(orbit, diagonal.samples(seeds[1]))
    _require_minimum(orbit, sums)
    factors = orbit.logarithms(orbit.least(mean, _errors(sums)))
    if diagonal.is_exact:
        return factors, 0.0, True
    other, others = _mean_and_sums(orbit, diagonal.samples(seeds[2]))
    there = orbit.logarithms(orbit.least(other, _LOOSE * _errors(others)))
    return factors, max(float((other * ((-2 * factors).exp() - (-2 * there).exp())).sum()), 0.0), False


def _require_same_loss(objective: Objective, factors: Tensor) -> None:
    """Raise unless the loss at the rescaled parameters is the loss: a penalty on the weights is not kept."""
    before = objective.value()
    after = objective.value_at(objective.parameters() * factors.to(objective.device))
    unit = objective.vector.unit
    if not abs(after - before) <= math.sqrt(unit) * abs(before) + _ROUNDINGS * unit:
        raise ProbeError(
            f"the rescaling that keeps the network's outputs changes the loss from {before:.6g} to {after:.6g}: it "
            "depends on the weights themselves, as a penalty on their norm does; measure the loss without it"
        )


class _Diagonal:
    """Independent estimates of the diagonal of an operator: of some eigenpairs exactly, of the rest by random signs.

    Args:
        operator: The operator.
        budget: Number of products of the eigenpairs and of two samples.
        seed: Of the eigenpairs.

    Attributes:
        is_exact: True if the budget allows the whole matrix; there is one estimate then.
    """

    def __init__(self, operator: SymmetricOperator, budget: int, seed: int) -> None:
        self._operator, self.is_exact = operator, operator.size <= budget
        if self.is_exact:
            return
        before = operator.products
        found = measure_spectrum(
            operator, top=_PAIRS, rel=0.1, max_products=budget // 3, quantities=("top",), seed=seed
        ).top
        assert found is not None  # requested above
        self._vectors = found.vectors.double()
        self._values = found.values[: self._vectors.shape[1]].to(self._vectors)
        self._count = (budget - (operator.products - before)) // 2

    def samples(self, seed: int) -> Iterator[Tensor]:
        """Yield unbiased estimates, `(n,)` float64 on the CPU; they take half of the budget that is left."""
        operator = self._operator
        if self.is_exact:
            images = operator @ torch.eye(operator.size, dtype=operator.dtype, device=operator.device)
            yield images.diagonal().double().cpu()
            return
        generator, V = torch.Generator().manual_seed(seed), self._vectors
        part = (V.square() * self._values).sum(1)
        for _ in range(self._count):
            z = operator.signs(generator).double()
            rest = (operator @ z).double() - (V * ((V * z[:, None]).sum(0) * self._values)).sum(1)
            yield (part + z * rest).cpu()


def _mean_and_sums(orbit: RescalingOrbit, samples: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean of estimates of the diagonal, and the sums into and out of the neurons of each."""
    total, sums = torch.zeros(len(orbit.writes), dtype=torch.float64), []
    for row in samples:
        total += row
        sums.append(torch.stack(orbit.sums(row)))
    return total / len(sums), torch.stack(sums)


def _errors(sums: Tensor) -> Tensor:
    """Return the standard errors of the means of estimates `(k, ...)`; 0 for one that is exact."""
    return sums.std(0) / math.sqrt(len(sums)) if len(sums) > 1 else torch.zeros_like(sums[0])


def _require_minimum(orbit: RescalingOrbit, sums: Tensor) -> None:
    """Raise if a sum of the diagonal into or out of a neuron is negative: the trace then falls without end."""
    mean, freedom = sums.mean(0), max(len(sums) - 1, 1)
    sure = float(stdtrit(freedom, 1 - _CHANCE / mean.numel()))
    below = mean < -sure * _errors(sums) - _ZERO * float(mean.abs().max())
    below[:, 0] = False
    if bool(below.any()):
        side, first = (int(one) for one in below.nonzero()[0])
        raise ProbeError(
            f"the trace has no minimum over the rescalings: the curvature {'out of' if side else 'into'} "
            f"{int(below[side].sum())} neurons is negative, the first of {orbit.name(first)}; this is not a minimum"
        )
