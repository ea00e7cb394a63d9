"""Local learning coefficient: the mean rise of the loss under a localized tempered posterior, by a Langevin sampler."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.perturbation import require_resolved, rms
from lossscope.probes.statistics.estimate import Estimate, mean_estimate
from lossscope.probes.statistics.propagation import independent_seeds
from lossscope.probes.sums import all_finite, dot

__all__ = ["LearningCoefficient", "local_learning_coefficient"]

_TARGET: Final = 0.574  # share of accepted proposals that a step length is adapted to
_FIRST_STEP: Final = 1e-3  # step length to start with, in units of 1 / (n beta)
_ADAPT: Final = 2.0  # change of its logarithm by the first proposal, beside the target
_BATCHES: Final = 5  # parts of a chain whose means are compared
_AGREE: Final = 1.05  # largest ratio of the spread of all chains to that inside them
_EFFECTIVE: Final = 100  # independent samples that are needed
_ACCEPTED: Final = (0.2, 0.95)  # share of accepted proposals of a chain that has adapted
_COARSE: Final = 1e-5  # rounding unit above which a small step is lost


@dataclass(frozen=True, eq=False)
class LearningCoefficient:
    """Local learning coefficient, with what the sampler tells of itself."""

    coefficient: Estimate  # dimensionless
    losses: NDArray[np.float64]  # (chains, steps), losses of the second half of each chain
    accepted: tuple[float, ...]  # share of accepted proposals of each chain
    steps: tuple[float, ...]  # step length of each chain
    agreement: float  # spread of all half-chains over that inside them; 1 where all agree
    effective: float  # number of independent samples
    inverse_temperature: float  # n beta
    localization: float


def local_learning_coefficient(
    objective: Objective,
    *,
    localization: float = 100.0,
    inverse_temperature: float | None = None,
    chains: int = 4,
    steps: int = 1000,
    seed: int = 0,
) -> LearningCoefficient:
    r"""Estimate the local learning coefficient by sampling parameters near the present ones.

    .. math:: \hat\lambda = n\beta \left( E\, L(w) - L(\theta) \right), \qquad
              p(w) \propto \exp\left(-n\beta L(w) - \tfrac{\gamma}{2} |w - \theta|^2 \right)

    with :math:`\beta = 1 / \ln n` and n the number of terms in the mean. At a regular minimum it is d/2, half the
    number of directions that are not flat; where the loss grows as :math:`\sum |x_i|^{p_i}` it is
    :math:`\sum 1 / p_i`.

    The sampler is that of Langevin on all data with a Metropolis step, so it has no error of the step length; it adapts
    the length in the first half of each chain and counts the second. All chains start at the present parameters.

    Args:
        objective: The loss.
        localization: :math:`\gamma`, not negative; 0 samples the whole posterior.
        inverse_temperature: :math:`n\beta`. Default: n / ln n.
        chains: Number of chains, at least 2.
        steps: Length of each chain, at least 40.
        seed: Seed of all chains.

    Returns:
        The number with the 95 % interval over parts of chains. Cost: `chains` times `steps` losses and gradients.

    Raises:
        ProbeError: The sampler's own diagnostics fail: chains disagree, too few independent samples, steps that are
            accepted nearly always or never, or a mean loss below that of the present parameters, which then are no
            minimum. Or an argument is out of range, the loss is not finite, or the dtype is too coarse.

    Source:
        E. Lau et al. (2025), The local learning coefficient, AISTATS, arXiv:2308.12108; G. Roberts, J. Rosenthal
        (1998), Optimal scaling of discrete approximations to Langevin diffusions, J. R. Stat. Soc. B 60, 255-268, for
        the share of accepted proposals; A. Vehtari et al. (2021), Rank-normalization, folding, and localization: an
        improved R-hat, arXiv:1903.08008, for the agreement of halves of chains.
    """
    _check(objective, localization, inverse_temperature, chains, steps)
    n = objective.samples
    beta = n / math.log(n) if inverse_temperature is None else inverse_temperature
    begun, found = time.perf_counter(), list[_Chain]()
    with objective.evaluating():
        for one in independent_seeds(seed, chains):
            found.append(_Chain(objective, beta, localization, one))
            found[-1].run(steps)
    losses = np.array([chain.losses for chain in found])
    accepted = tuple(chain.accepted / (steps - steps // 2) for chain in found)
    _require_resolved(objective, found)
    agreement, effective = _agreement(losses), _effective(losses)
    rise = mean_estimate(_parts(losses).reshape(-1) - found[0].loss)
    _require_sampled(accepted, agreement, effective, rise)
    value, stderr, low, high = (beta * one for one in (rise.value, rise.stderr, rise.low, rise.high))
    seconds = time.perf_counter() - begun
    estimate = Estimate(value, stderr, low, high, int(effective), "standard error", seconds=seconds)
    lengths = tuple(chain.step for chain in found)
    return LearningCoefficient(estimate, losses, accepted, lengths, agreement, effective, beta, localization)


class _Chain:
    """Metropolis-adjusted Langevin chain; make it inside `evaluating`."""

    def __init__(self, objective: Objective, beta: float, localization: float, seed: int) -> None:
        self._objective, self._beta, self._gamma = objective, beta, localization
        self._center = objective.parameters()
        self._generator = torch.Generator().manual_seed(seed)
        self.loss = objective.value()
        self.losses: list[float] = []
        self.accepted, self.step = 0, _FIRST_STEP / beta

    def run(self, steps: int) -> None:
        """Take steps; adapt the step length in the first half, count losses and accepted proposals in the second."""
        at = self._center.clone()
        loss, energy, force = self._measured(at, self.loss)
        for index in range(steps):
            noise = torch.randn(len(at), generator=self._generator, dtype=torch.float32).to(at)
            way = noise.mul_(math.sqrt(self.step)).sub_(force, alpha=self.step / 2)
            tried = at + way
            new, new_energy, new_force = self._measured(tried, self._objective.value_at(tried))
            chance = 0.0
            if math.isfinite(new_energy):
                log = energy - new_energy - self._back(way, new_force) + self._back(-way, force)
                chance = math.exp(min(log, 0.0))
            if float(torch.rand((), generator=self._generator)) < chance:
                at, loss, energy, force = tried, new, new_energy, new_force
                self.accepted += index >= steps // 2
            if index < steps // 2:
                self.step *= math.exp(_ADAPT * (chance - _TARGET) / math.sqrt(index + 1))
            else:
                self.losses.append(loss)

    def _measured(self, at: Tensor, loss: float) -> tuple[float, float, Tensor]:
        """Return loss, energy and its gradient; infinite energy where the loss or the gradient is not finite."""
        if not math.isfinite(loss):
            return loss, math.inf, at
        with self._objective.at(at):
            force = self._objective.gradient().mul_(self._beta)
        away = at - self._center
        energy = self._beta * loss + self._gamma / 2 * float(dot(away, away))
        force.add_(away, alpha=self._gamma)
        return loss, energy if all_finite(force) else math.inf, force

    def _back(self, way: Tensor, force: Tensor) -> float:
        """Return minus the logarithm of the density of a proposal that goes back along a way, up to a constant."""
        off = torch.add(way, force, alpha=-self.step / 2)
        return float(dot(off, off)) / (2 * self.step)


def _parts(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of equal parts of chains, `(chains, parts)`."""
    length = losses.shape[1] // _BATCHES
    means: NDArray[np.float64] = losses[:, -length * _BATCHES :].reshape(len(losses), _BATCHES, length).mean(2)
    return means


def _agreement(losses: NDArray[np.float64]) -> float:
    """Return the spread of all half-chains over that inside them (split R-hat)."""
    half = losses.shape[1] // 2
    halves = losses[:, -2 * half :].reshape(-1, half)
    inside, between = float(halves.var(1, ddof=1).mean()), float(halves.mean(1).var(ddof=1))
    return math.sqrt((half - 1) / half + between / inside) if inside > 0 else math.inf


def _effective(losses: NDArray[np.float64]) -> float:
    """Return the number of independent samples whose mean is as uncertain as that of the parts."""
    parts = _parts(losses)
    spread = float(parts.var(ddof=1)) / parts.size
    return min(float(losses.var(ddof=1)) / spread, losses.size) if spread > 0 else 0.0


def _require_sampled(accepted: tuple[float, ...], agreement: float, effective: float, rise: Estimate) -> None:
    """Raise if the diagnostics of the sampler fail."""
    low, high = _ACCEPTED
    why = ""
    if not all(low <= share <= high for share in accepted):
        shares = ", ".join(f"{share:.2f}" for share in accepted)
        why = f"the chains accept {shares} of their proposals, where {low:g} to {high:g} is usual"
    elif not agreement <= _AGREE:
        why = f"the chains disagree: their spread is {agreement:.3f} times that inside them, {_AGREE:g} is allowed"
    elif not effective >= _EFFECTIVE:
        why = f"the chains have {effective:.0f} independent samples, and {_EFFECTIVE} are needed"
    if why:
        raise ProbeError(f"the sampler has not converged, {why}: raise steps, or raise localization")
    if rise.value <= 0:
        raise ProbeError(
            f"the mean loss of the samples is {-rise.value:.3g} below that of these parameters, which are no minimum: "
            "there is no local learning coefficient"
        )


def _require_resolved(objective: Objective, chains: Sequence[_Chain]) -> None:
    """Raise unless the steps are large beside the rounding of the weights, which otherwise stay where they are."""
    least = math.sqrt(min(chain.step for chain in chains))
    require_resolved("the length of the sampler's steps", least, rms(objective.parameters()), objective.vector.unit)


def _check(
    objective: Objective, localization: float, inverse_temperature: float | None, chains: int, steps: int
) -> None:
    """Reject arguments out of range, and parameters that a small step does not move."""
    if not 0 <= localization < math.inf:
        raise ProbeError(f"localization must be finite and not negative, got {localization:g}")
    if inverse_temperature is not None and not 0 < inverse_temperature < math.inf:
        raise ProbeError(f"inverse_temperature must be positive and finite, got {inverse_temperature:g}")
    if inverse_temperature is None and not objective.samples > 1:
        raise ProbeError("the temperature 1 / ln n needs more than one term in the mean: pass inverse_temperature=")
    if chains < 2 or steps < 40:
        raise ProbeError(f"chains must be at least 2 and steps at least 40, got {chains} and {steps}")
    if objective.vector.unit > _COARSE:
        raise ProbeError("the dtype of these parameters is too coarse for small steps: convert the model to float32")
