"""One number out of the runs of an arm, with the training seed as the unit where there are several."""

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

__all__ = ["GAP", "Estimate", "Pooled", "pooled", "seed_of"]

GAP: Final = exact_estimate(math.nan)  # of a seed that has no such number

_ENOUGH: Final = 5  # windows of one run from which its interval covers as it should, by simulation


@dataclass(frozen=True)
class Pooled:
    """A number of an arm."""

    estimate: Estimate  # with infinite ends where none could be relied on
    seeds: int  # with such a number; of 2 or more the interval is over seeds, of one it is that run's own
    gaps: int = 0  # seeds without: a number of the others alone may not stand for them

    @property
    def judged(self) -> bool:
        """Whether the interval has two ends, and stands for all seeds."""
        return not self.gaps and math.isfinite(self.estimate.low) and math.isfinite(self.estimate.high)


def seed_of(run: Run) -> object:
    """What tells a run's seeds from those of others; a run that does not say is its own."""
    seeds = run.manifest.get("seeds")
    if isinstance(seeds, dict) and seeds:
        return tuple(sorted((str(factor), str(seed)) for factor, seed in seeds.items()))
    return run.path.resolve()


def pooled(estimates: Iterable[tuple[object, Estimate]]) -> Pooled:
    r"""The mean over the seeds of an arm, with an interval that knows what the arm would do with other seeds.

    Steps of one run are no replications of the training, so with two seeds or more the interval is Student's over the
    seeds' values, :math:`\bar x \pm t_{0.975, n-1}\, s / \sqrt n`, whatever the error of each. With one seed nothing is
    known of others, and the interval is the run's own. Ends that could not be relied on are infinite: those of one run
    of fewer than five windows; of several runs of one seed alone; and Student's where a seed's own number has no bound,
    as the quotient of something by next to nothing, since such values are not normal.

    Args:
        estimates: A seed and a number of a run, for each run; of several runs of one seed the mean counts once. Gaps
            are left out, and a seed that has nothing else is counted.

    Returns:
        The number; its estimate is a gap where there is none.
    """
    found: dict[object, list[Estimate]] = {}
    for seed, estimate in estimates:
        numbers = found.setdefault(seed, [])
        if math.isfinite(estimate.value):
            numbers.append(estimate)
    there = [numbers for numbers in found.values() if numbers]
    gaps = len(found) - len(there)
    if not there:
        return Pooled(GAP, 0, gaps)
    if len(there) == 1:
        return Pooled(_of_one_seed(there[0]), 1, gaps)
    values = np.array([np.mean([one.value for one in same]) for same in there])
    n, mean = len(values), float(values.mean())
    stderr = float(values.std(ddof=1)) / math.sqrt(n)
    loose = any(one.samples > 1 and math.isinf(one.high) for same in there for one in same)
    half = math.inf if loose else float(stdtrit(n - 1, 0.975)) * stderr
    return Pooled(Estimate(mean, stderr, mean - half, mean + half, n, "standard error"), n, gaps)


def _of_one_seed(runs: Sequence[Estimate]) -> Estimate:
    """A run's own number, or the mean of several; its ends infinite where they could not be relied on."""
    if len(runs) == 1 and runs[0].samples >= _ENOUGH:
        return runs[0]
    mean = float(np.mean([one.value for one in runs]))
    return Estimate(mean, math.inf, -math.inf, math.inf, runs[0].samples, "standard error", converged=False)
