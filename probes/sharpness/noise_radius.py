"""Size of random noise at which the mean loss has risen by a given amount, with its interval over the draws."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lossscope.probes.errors import ProbeError
from lossscope.probes.sharpness.noise import Noise
from lossscope.probes.sharpness.perturbation import require_resolved, rms
from lossscope.probes.sharpness.step_quality import rounding
from lossscope.probes.statistics.crossing import Curves, crossing_interval
from lossscope.probes.statistics.estimate import Estimate

__all__ = ["noise_radius", "require_noise"]

Array: TypeAlias = NDArray[np.float64]

_RANGE: Final = (1e-4, 10.0)  # of the radius, in units of the weights
_START: Final = 0.1
_STRIDE: Final = (2.0, 10.0)  # least and largest factor between two noise levels of the search
_INSIDE: Final = 0.1  # share of a bracket, at either end, in which no noise level is tried
_REACH: Final = 3.0  # standard errors on both sides of the radius that the interval needs
_MOST: Final = 60  # noise levels of one search; halving the whole range to rounding takes as many


def noise_radius(noise: Noise, rise: float, rel: float, seen: Mapping[float, Array] | None = None) -> Estimate:
    """Find the noise level at which the mean rise over the draws crosses a value; call it inside `evaluating`.

    Args:
        noise: The draws.
        rise: Rise of the loss, nats.
        rel: Relative accuracy at which the crossing of these draws is found.
        seen: Rises of the draws by noise level, where some are known.

    Returns:
        The noise level with the 95 % interval of a studentized bootstrap over the draws.

    Raises:
        ProbeError: The rounding of the loss is not small beside the rise, or there is no crossing in range.
    """
    begun, objective = time.perf_counter(), noise.objective
    slack = rounding(objective, noise.loss, noise.loss + rise)
    if slack > rel * rise:
        raise ProbeError(
            f"the rise must be large beside the rounding of the loss, got {rise:g} at a loss of {noise.loss:g} "
            f"with a rounding of {slack:.2g}: convert the model to float32, or use objective.in_double()"
        )
    theta = objective.parameters()
    size = rms(theta)
    search = _Search(noise, rise, rel, 1.0 if noise.relative else size or 1.0, seen or {})
    at = search.crossing()
    require_resolved("a noise level", at, 1.0 if noise.relative else size, objective.vector.unit)
    low, high, stderr = crossing_interval(search.curves(), rise, at, seed=noise.seed)
    if search.widened(at, stderr):
        low, high, stderr = crossing_interval(search.curves(), rise, at, seed=noise.seed)
    met = math.isfinite(low) and math.isfinite(high)
    return Estimate(
        at,
        stderr,
        low,
        high,
        noise.draws,
        "standard error",
        seconds=time.perf_counter() - begun,
        converged=met,
        cause="" if met else "the draws differ too much for an interval, or the loss is not finite close to the radius",
    )


def require_noise(rise: float, draws: int, rel: float) -> None:
    """Reject arguments out of range."""
    if not 0 < rise < math.inf:
        raise ProbeError(f"rise must be positive and finite, got {rise:g}")
    if draws < 16:
        raise ProbeError(f"draws must be at least 16 for an interval, got {draws}")
    if not 0 < rel < 1:
        raise ProbeError(f"rel must be above 0 and below 1, got {rel:g}")


class _Search:
    """Search of the noise level at which the mean rise crosses a value; keeps all rises that it has seen."""

    def __init__(self, noise: Noise, rise: float, rel: float, unit: float, seen: Mapping[float, Array]) -> None:
        self._noise, self._rise, self._rel, self._seen = noise, rise, rel, dict(seen)
        self._kind = "relative noise" if noise.relative else "noise"
        self._least, self._most = (unit * end for end in _RANGE)
        self._start = unit * _START

    def curves(self) -> Curves:
        """Return the finite rises seen, by noise level."""
        levels = sorted(sigma for sigma, row in self._seen.items() if np.isfinite(row).all())
        return Curves(np.log(levels), np.stack([self._seen[sigma] for sigma in levels]))

    def crossing(self) -> float:
        """Return the noise level of the crossing."""
        below, above = self._bracket()
        for _ in range(_MOST):
            if math.log(above / below) <= self._rel:
                break
            middle = self._between(below, above)
            found = self._mean(middle)
            if abs(found / self._rise - 1) <= self._rel:
                return self._near(middle, found, below, above)
            below, above = (middle, above) if found < self._rise else (below, middle)
        if not math.isfinite(self._mean(above)):
            raise ProbeError(
                f"the loss is not finite from {self._kind} of {above:.3g} on, where it has risen by "
                f"{self._mean(below):.3g} at most: it does not rise by {self._rise:g} before"
            )
        return self._between(below, above, safe=False)

    def widened(self, at: float, stderr: float) -> bool:
        """See the rises further out if those seen end within some standard errors; return True if there are more."""
        reach = math.exp(_REACH * (stderr / at if math.isfinite(stderr) else 0.5 / _REACH))
        wanted = [at / reach] if min(self._seen) > at / reach else []
        wanted += [at * reach] if max(self._seen) < at * reach else []
        for sigma in wanted:
            self._mean(sigma)
        return bool(wanted)

    def _near(self, middle: float, found: float, below: float, above: float) -> float:
        """Return the crossing by one more interpolation from a noise level that is close to it."""
        ends = (middle, above) if found < self._rise else (below, middle)
        return self._between(*ends, safe=False)

    def _mean(self, sigma: float) -> float:
        """Return the mean rise; infinite if the loss of a draw is not finite, as it has left every basin."""
        if sigma not in self._seen:
            self._seen[sigma] = self._noise.rises(np.array([sigma]))[0]
        row = self._seen[sigma]
        return float(row.mean()) if np.isfinite(row).all() else math.inf

    def _bracket(self) -> tuple[float, float]:
        """Return two noise levels, the mean rise below the wanted one at the first, and not at the second."""
        low, high = self._known_bracket()
        sigma = high or low or self._start
        while low is None or high is None:
            found = self._mean(sigma)
            if found < self._rise:
                low = sigma
                if high is None and sigma >= self._most:
                    most = max(map(self._mean, self._seen))
                    raise ProbeError(
                        f"the loss rises by at most {most:.3g} at the {len(self._seen)} noise levels tried up to "
                        f"{sigma:g}, less than {self._rise:g}: no radius up to {sigma:g}"
                    )
            else:
                high = sigma
                if low is None and sigma <= self._least:
                    raise ProbeError(
                        f"the loss rises by {found:.3g} at {self._kind} of {sigma:g} already, more than "
                        f"{self._rise:g}: no radius down to {sigma:g}"
                    )
            sigma = min(max(sigma * self._stride(found), self._least), self._most)
        return low, high

    def _known_bracket(self) -> tuple[float | None, float | None]:
        """Return the first noise level of a known curve at which the rise is reached, and the one before it."""
        low = None
        for sigma in sorted(self._seen):
            if self._mean(sigma) >= self._rise:
                return low, sigma
            low = sigma
        return low, None

    def _stride(self, found: float) -> float:
        """Return the factor to the next noise level: that of a quadratic rise, within limits."""
        share = found / self._rise
        if not 0 < share < math.inf:
            return _STRIDE[0] if share <= 0 else 1 / _STRIDE[0]
        factor = 1 / math.sqrt(share)
        if factor > 1:
            return min(max(1.1 * factor, _STRIDE[0]), _STRIDE[1])
        return max(min(factor / 1.1, 1 / _STRIDE[0]), 1 / _STRIDE[1])

    def _between(self, below: float, above: float, *, safe: bool = True) -> float:
        """Return the crossing between two noise levels by interpolation, kept off both ends if `safe`."""
        low, high = self._mean(below), self._mean(above)
        width = math.log(above / below)
        if not math.isfinite(high):
            return below * math.exp(width / 2)
        powers = low > 0
        share = math.log(self._rise / low) / math.log(high / low) if powers else (self._rise - low) / (high - low)
        if safe:
            share = min(max(share, _INSIDE), 1 - _INSIDE)
        return below * math.exp(share * width)
