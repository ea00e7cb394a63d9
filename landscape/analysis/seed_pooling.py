"""Pooling of one number over the runs of an arm, with the training seed as the unit if there are several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import stdtrit

from lossscope.probes.statistics.estimate import Estimate, exact_estimate

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["MISSING", "Estimate", "Pooled", "pooled", "seed_of"]

MISSING: Final = exact_estimate(math.nan)  # missing value of a seed

_ENOUGH: Final = 5  # windows of one run from which its interval has its nominal coverage, by simulation


@dataclass(frozen=True)
class Pooled:
    """Number pooled over the seeds of an arm."""

    estimate: Estimate  # ends are infinite if they would be unreliable
    seeds: int  # seeds with a value; with 2 or more the interval is over seeds, with one it is that run's own
    missing: int = 0  # seeds with a missing value, which the others may not represent

    @property
    def judged(self) -> bool:
        """True if the interval has two finite ends and no seed is missing."""
        return not self.missing and math.isfinite(self.estimate.low) and math.isfinite(self.estimate.high)


def seed_of(run: Run) -> object:
    """Return a key that identifies the seeds of a run; its path if the manifest has no seeds."""
    seeds = run.manifest.get("seeds")
    if isinstance(seeds, dict) and seeds:
        return tuple(sorted((str(factor), str(seed)) for factor, seed in seeds.items()))
    return run.path.resolve()


def pooled(estimates: Iterable[tuple[object, Estimate]]) -> Pooled:
    r"""Pool a number over the seeds of an arm: the mean, with a t-interval over seeds.

    Steps of one run are not replications of the training, so with two or more seeds the interval is the t-interval over
    the seeds' values, :math:`\bar x \pm t_{0.975, n-1}\, s / \sqrt n`, regardless of the error of each. With one seed
    it is the run's own interval, which says nothing about other seeds. Unreliable ends are infinite: those of one run
    with fewer than five windows; of several runs of a single seed; and of the t-interval if the number of a seed is
    itself unbounded, such as a quotient with a denominator near 0, since such values are not normal.

    Args:
        estimates: Seed and number of each run; several runs of one seed count once, with their mean. Missing values are
            left out, and a seed with no other value is counted in `missing`.

    Returns:
        The pooled number; its estimate is missing if no run has one.
    """
    found: dict[object, list[Estimate]] = {}
    for seed, estimate in estimates:
        numbers = found.setdefault(seed, [])
        if math.isfinite(estimate.value):
            numbers.append(estimate)
    there = [numbers for numbers in found.values() if numbers]
    missing = len(found) - len(there)
    if not there:
        return Pooled(MISSING, 0, missing)
    if len(there) == 1:
        return Pooled(_of_one_seed(there[0]), 1, missing)
    values = np.array([np.mean([one.value for one in same]) for same in there])
    n, mean = len(values), float(values.mean())
    stderr = float(values.std(ddof=1)) / math.sqrt(n)
    unbounded = any(one.samples > 1 and math.isinf(one.high) for same in there for one in same)
    half = math.inf if unbounded else float(stdtrit(n - 1, 0.975)) * stderr
    return Pooled(Estimate(mean, stderr, mean - half, mean + half, n, "standard error"), n, missing)


def _of_one_seed(runs: Sequence[Estimate]) -> Estimate:
    """Return a run's own estimate, or the mean of several runs; ends are infinite if they would be unreliable."""
    if len(runs) == 1 and runs[0].samples >= _ENOUGH:
        return runs[0]
    mean = float(np.mean([one.value for one in runs]))
    return Estimate(mean, math.inf, -math.inf, math.inf, runs[0].samples, "standard error", converged=False)
