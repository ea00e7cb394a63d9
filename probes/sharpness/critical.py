"""Critical learning rate: the learning rate at which an update leaves the loss as it was, bracketed by losses alone."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.number_rounding import number_rounding
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["CriticalLearningRate", "critical_learning_rate", "nonquadraticity"]

_REACH: Final = 2.0**20  # factors of the start up to this and down to its inverse are tried: 40 factors of two
_FLAT: Final = 3  # halvings in a row whose change is within rounding, after which smaller steps show no more
_TRIES: Final = 4  # searches: with the rounding that is assumed, and with those that were measured
_FAR: Final = 10.0  # ratio of losses from which their rounding errors are not comparable
_ROUNDS: Final = 200  # points of one refinement; halving a bracket down to rounding takes a quarter
_LEAST: Final = 3  # losses: at the start, and at both ends of a bracket


@dataclass(frozen=True)
class CriticalLearningRate:
    """Learning rate at which an update leaves the loss of fixed data as it was; all intervals are one bracket."""

    rate: (
        Estimate  # eta_c; at the lower end of its interval the loss is lower than before the step, at the upper higher
    )
    sharpness: Estimate  # lambda_c = 2 / eta_c, in the inverse unit of the learning rate
    multiple: Estimate  # eta_c over the learning rate of the step: below 1 the step raises the loss
    losses: int  # evaluations of the loss, without those in another precision that measure its rounding


def nonquadraticity(multiple: Estimate, edge: Estimate) -> Estimate:
    r"""Compute :math:`\lambda_c / \lambda_{dir}`, which is 1 where the loss is quadratic along the step.

    Args:
        multiple: Critical learning rate over that of the step.
        edge: Directional edge ratio of the same loss along the same step.

    Returns:
        The inverse of their product, between the ratios of opposite ends; nan where the sign of the curvature is not
        known or the step is no descent direction.
    """
    if not (edge.low > 0 or edge.high < 0):
        return replace(multiple, value=math.nan, low=math.nan, high=math.nan, converged=False)
    ends = [1 / (s * r) for s in (multiple.low, multiple.high) for r in (edge.low, edge.high)]
    value, met = 1 / (multiple.value * edge.value), multiple.converged and edge.converged
    return replace(
        multiple, value=value, low=min(ends), high=max(ends), converged=met, cause=multiple.cause or edge.cause
    )


def critical_learning_rate(
    objective: Objective,
    displacement: Tensor,
    lr: float,
    *,
    at: Tensor | None = None,
    start: float = 1.0,
    rel: float = 1 / 16,
    scan: int = 0,
    max_losses: int = 64,
) -> CriticalLearningRate:
    r"""Bracket the learning rate at which an update leaves the loss as it was, by forward passes only.

    .. math:: \eta_c = \min\{\eta > 0 : L(\theta + \tfrac{\eta}{\eta_0} D) > L(\theta)\}, \qquad \lambda_c = 2/\eta_c

    with D the step taken at the learning rate :math:`\eta_0`. On a quadratic :math:`\lambda_c` is the directional
    sharpness :math:`\lambda_{dir} = -D^\top H D / (\eta_0\, g^\top D)`, a mean of eigenvalues and so at most
    :math:`\lambda_{\max}` for gradient descent; elsewhere it is a number of a finite step and estimates no eigenvalue.

    From the step itself (or `start`), multiples of it are doubled until the loss is higher than before, or halved until
    it is lower; the bracket is then narrowed towards the root of the change over the multiple, which on a quadratic is
    a straight line. The signs at both ends are compared with the rounding of the loss, measured in another precision,
    so the change is zero somewhere inside if the loss is continuous. **It need not be the first zero**: the loss may
    rise and fall again between two points tried.

    Args:
        objective: The loss, in mode `eval` or `frozen`. It may be another one than D was computed for: the result then
            tells at which learning rate the update raises that loss (fine-tuning against the data of pre-training).
        displacement: `(n,)`, D, parameters after the step minus before.
        lr: Learning rate of the step, above 0.
        at: `(n,)`, parameters before the step. Default: the model's current parameters.
        start: Multiple of the step at which the search begins, such as the critical one of an earlier step.
        rel: Relative width at which the bracket is narrow enough: 1 - low / high is at most this.
        scan: Number of equally spaced points between zero and the upper end at which an earlier crossing is looked for
            before narrowing; 0 for none, 16 is usual.
        max_losses: Budget of losses, at least 3; five or six, and one for each factor of two between `start` and the
            crossing, are usual.

    Returns:
        The bracket. Cost: the losses, and three more in float64 (of a float64 objective in float32). The model is not
        written.

    Raises:
        ProbeError: An argument is out of range, the step is zero, the mode is `train`, or there is no bracket: the loss
            does not fall along the step, does not rise again, is not a number, or changes within its rounding.

    Source:
        D. Kalra et al. (2026), A scalable measure of loss landscape curvature for analyzing the training dynamics of
        LLMs, arXiv:2601.16979.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> objective = Objective(net, lambda model, x: model(x).square().mean(), [torch.ones(1, 1)])
        >>> found = critical_learning_rate(objective, torch.tensor([-0.4]), 0.1, at=torch.tensor([2.0]))
        >>> found.rate.low < 1.0 < found.rate.high  # 2 over the curvature, which is 2
        True
    """
    _check(objective, displacement, lr, start, rel, scan, max_losses)
    begun = time.perf_counter()
    theta = objective.parameters() if at is None else objective.vector.fitting(at)
    with objective.evaluating():
        line = _Line(objective, theta, objective.vector.fitting(displacement), max_losses)
        low, high = _resolved(line, start, rel, scan)
    multiple = _estimate(line, low, high, rel, time.perf_counter() - begun)
    rate = _scaled(multiple, lr)
    return CriticalLearningRate(rate, _inverted(rate), multiple, line.losses)


class _SpentError(Exception):
    """The budget of losses is spent."""


class _Line:
    """Change of the loss along a step, as a function of the multiple of the step; each point is evaluated once."""

    def __init__(self, objective: Objective, theta: Tensor, step: Tensor, budget: int) -> None:
        self._objective, self._theta, self._step, self._budget = objective, theta, step, budget
        self._changes: dict[float, float] = {}
        self.start = objective.value_at(theta)
        if not math.isfinite(self.start):
            raise ProbeError(f"the loss before the step must be finite, got {self.start}")
        # rounding of a change: a share of the larger of both losses, and what was measured beyond that
        self.share, self.floor = rounding(objective, 1.0), 0.0

    @property
    def losses(self) -> int:
        """Number of losses evaluated."""
        return 1 + len(self._changes)

    @property
    def spent(self) -> bool:
        """Return True if the budget is spent."""
        return self.losses >= self._budget

    def change(self, s: float) -> float:
        """Return L(theta + s D) - L(theta); nan where the loss is not a number or unbounded below."""
        if s not in self._changes:
            if self.spent:
                raise _SpentError
            found = self._objective.value_at(torch.add(self._theta, self._step, alpha=s)) - self.start
            self._changes[s] = math.nan if found == -math.inf else found
        return self._changes[s]

    def size(self, s: float) -> float:
        """Return the larger of the losses before the step and at a point, in absolute value."""
        change = self.change(s)
        return max(abs(self.start), abs(self.start + change) if math.isfinite(change) else 0.0)

    def slack(self, s: float | None = None) -> float:
        """Return the rounding of the change at a point; by default where the loss is about that before the step."""
        return self.floor + self.share * (abs(self.start) if s is None else self.size(s))

    def learn(self, low: float, high: float, errors: list[float]) -> None:
        """Raise the rounding to the errors measured at both ends; those of a far larger loss are a share of it."""
        near = max(self.size(s) for s in self._changes if s <= low)
        for s, error in zip((low, high), errors, strict=False):
            if self.size(s) <= _FAR * near:
                self.floor = max(self.floor, error)
            else:
                self.share = max(self.share, error / self.size(s))

    def falls(self, s: float) -> bool:
        """Return True if the loss is lower than before the step, by more than its rounding."""
        return self.change(s) < -self.slack(s)

    def rises(self, s: float) -> bool:
        """Return True if the loss is higher than before the step by more than its rounding, or not a number."""
        return not self.change(s) <= self.slack(s)

    def root(self, low: float, high: float) -> float:
        """Return the zero of the line through the change over the multiple at both ends, exact on a quadratic."""
        below, above = self.change(low) / low, self.change(high) / high
        if not math.isfinite(above):
            return math.sqrt(low * high)
        return min(max(low + (high - low) * below / (below - above), low), high)

    def unknown(self, low: float, high: float) -> float:
        """Return the relative distance from the root within which the change is below twice its rounding."""
        slope = (self.change(high) / high - self.change(low) / low) / (high - low)
        return 2 * self.slack() / (slope * self.root(low, high) ** 2)

    def errors(self, points: list[float]) -> list[float]:
        """Bound the rounding of the changes at some points, by computing them in another precision."""
        changes = [self.change(s) for s in points]
        sizes = [self.size(s) for s in points]

        def again(other: Objective) -> list[float]:
            theta, step = self._theta.to(other.dtype), self._step.to(other.dtype)
            start = other.value_at(theta)
            return [other.value_at(torch.add(theta, step, alpha=s)) - start for s in points]

        return number_rounding(self._objective, again, changes, sizes)


def _resolved(line: _Line, start: float, rel: float, scan: int) -> tuple[float, float]:
    """Return a bracket with changes at both ends beyond their rounding; search again once the rounding is known."""
    for _ in range(_TRIES):
        low, high = _search(line, start, rel, scan)
        ends = [low, high] if math.isfinite(line.change(high)) else [low]
        errors = line.errors(ends)
        if all(abs(line.change(s)) > error for s, error in zip(ends, errors, strict=True)):
            return low, high
        line.learn(low, high, errors)
    raise ProbeError(
        f"the loss changes along the step by no more than its rounding of {line.slack():.2g}, so that the sign of the "
        "change is not known: measure in float64, with objective.in_double()"
    )


def _search(line: _Line, start: float, rel: float, scan: int) -> tuple[float, float]:
    """Return multiples of the step at which the loss is lower and higher than before it."""
    try:
        low, high = _upwards(line, start)
        if scan:
            low, high = _scanned(line, high, scan)
        if low is None:
            low, high = _downwards(line, high, start)
    except _SpentError:
        raise ProbeError(
            f"max_losses must be larger: {line.losses} losses along the step found no two between which the change of "
            "the loss has a zero"
        ) from None
    low, high = _narrowed(line, low, high, rel)
    if math.isnan(line.change(high)):
        raise ProbeError(
            f"the loss is not a number from {high:.3g} times the step on, and is lower than before the step until "
            f"{low:.3g} times: it does not rise in between"
        )
    return low, high


def _upwards(line: _Line, start: float) -> tuple[float | None, float]:
    """Double the step until the loss is higher than before; return the last multiple at which it is lower, and that."""
    low, s = None, start
    while not line.rises(s):
        low = s if line.falls(s) else low
        s *= 2
        if s > start * _REACH and low is None:
            raise ProbeError(f"the loss changes along the step by no more than its rounding of {line.slack():.2g}")
        if s > start * _REACH:
            raise ProbeError(f"the loss does not rise along the step: it is lower than before at {low:.3g} times of it")
    return low, s


def _scanned(line: _Line, high: float, count: int) -> tuple[float | None, float]:
    """Return the first of some equally spaced points at which the loss is higher, and the last one before it lower."""
    low = None
    for i in range(1, count + 1):
        s = high * i / (count + 1)
        if line.rises(s):
            return low, s
        low = s if line.falls(s) else low
    return low, high


def _downwards(line: _Line, high: float, start: float) -> tuple[float, float]:
    """Halve the step until the loss is lower than before."""
    s, flat = high / 2, 0
    while not line.falls(s):
        high, flat = (s, 0) if line.rises(s) else (high, flat + 1)
        if s < start / _REACH:
            raise ProbeError(
                f"the loss does not fall along the step: it is higher than before down to {high:.3g} times of it, so "
                "the step is no descent direction of this loss"
            )
        if flat == _FLAT:
            raise ProbeError(
                f"the loss does not fall along the step: it is higher than before at {high:.3g} times of it, and "
                f"smaller ones change it within its rounding of {line.slack():.2g}: measure in float64, with "
                "objective.in_double(), if the step is a descent direction"
            )
        s /= 2
    return s, high


def _narrowed(line: _Line, low: float, high: float, rel: float) -> tuple[float, float]:
    """Narrow a bracket to a relative width by points on both sides of the root; every third one halves a wide one."""
    spread = 1.0  # factor of the distance from the root, for lines on which its sign is not known there
    for turn in range(1, _ROUNDS):
        s = _aside(line.root(low, high), low, high, spread * max(rel / 3, line.unknown(low, high)))
        if 1 - low / high <= rel or s is None:
            break
        if turn % 3 == 0 and 1 - low / high > 4 * rel:
            s = math.sqrt(low * high)
        try:
            falls, rises = line.falls(s), line.rises(s)
        except _SpentError:
            break
        low, high = (s if falls else low), (s if rises else high)
        spread *= 1 if falls or rises else 2
    return low, high


def _aside(root: float, low: float, high: float, distance: float) -> float | None:
    """Return a point at a relative distance from the root, on its wider side if that is inside; None if none is."""
    below, above = root * (1 - distance), root * (1 + distance)
    sides = [below] * (below > low) + [above] * (above < high)
    return sides[-1] if root * root < low * high and sides else sides[0] if sides else None


def _estimate(line: _Line, low: float, high: float, rel: float, seconds: float) -> Estimate:
    """Return the root with its bracket."""
    met = 1 - low / high <= rel
    near = f"closer to the critical learning rate the change of the loss is within its rounding of {line.slack():.2g}"
    cause = "" if met or line.spent else near
    return Estimate(
        line.root(low, high), math.nan, low, high, 0, "bracket", seconds=seconds, converged=met, cause=cause
    )


def _scaled(multiple: Estimate, factor: float) -> Estimate:
    """Return an estimate times a positive factor."""
    return replace(multiple, value=factor * multiple.value, low=factor * multiple.low, high=factor * multiple.high)


def _inverted(rate: Estimate) -> Estimate:
    """Return 2 over an estimate."""
    return replace(rate, value=2 / rate.value, low=2 / rate.high, high=2 / rate.low)


def _check(
    objective: Objective, displacement: Tensor, lr: float, start: float, rel: float, scan: int, max_losses: int
) -> None:
    """Reject arguments out of range."""
    if objective.mode == "train":
        raise ProbeError(
            "mode must be 'eval' or 'frozen' for a critical learning rate, got 'train': the buffers must be the same "
            "at all points of the line"
        )
    for name, positive in (("lr", lr), ("start", start)):
        if not (math.isfinite(positive) and positive > 0):
            raise ProbeError(f"{name} must be finite and above 0, got {positive:g}")
    if not bool(torch.isfinite(displacement).all()):
        raise ProbeError("displacement must be finite, got nan or inf: the optimizer step itself failed")
    if not bool((displacement != 0).any()):
        raise ProbeError("displacement must not be zero: without a step there is no line along which the loss changes")
    if not 0 < rel < 1:
        raise ProbeError(f"rel must be above 0 and below 1, got {rel:g}")
    if scan < 0:
        raise ProbeError(f"scan must be 0 or a number of points, got {scan}")
    if max_losses < _LEAST:
        raise ProbeError(f"max_losses must be at least {_LEAST}, got {max_losses}")
