"""One number out of the runs of an arm, with the training seed as the unit where there are several."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import stdtrit

from lossscope.probes.estimate import Estimate, exact_estimate

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Pooled", "pooled", "seed_of"]


_ENOUGH: Final = 5  # windows of one run from which its interval covers as it should, by simulation


@dataclass(frozen=True)
class Pooled:
    """A number of an arm."""

    estimate: Estimate
    seeds: int  # with such a number; of 2 or more the interval is over seeds, of one it is that run's own
    gaps: int = 0  # seeds without: a number of the others alone may not stand for them
    open: int = 0  # seeds whose own number may be anything: a ratio with next to nothing below, so with heavy tails

    @property
    def judged(self) -> bool:
        """Whether the interval has two ends that may be relied on, and stands for all seeds."""
        found = self.estimate
        enough = self.seeds > 1 or found.samples >= _ENOUGH
        return enough and not self.gaps and not self.open and math.isfinite(found.low) and math.isfinite(found.high)


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
    known of others, and the interval is the run's own. Student's interval takes the seeds' values for normal; where one
    of them has no bound of its own they are not, and the number is not `judged`.

    Args:
        estimates: A seed and a number of a run, for each run; of several runs of one seed the mean counts once. Gaps
            are left out and counted.

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
    if len(there) < 2:
        return Pooled(there[0][0] if there else exact_estimate(math.nan), len(there), gaps)
    values = np.array([np.mean([one.value for one in same]) for same in there])
    n, mean = len(values), float(values.mean())
    stderr = float(values.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * stderr
    loose = sum(any(one.samples > 1 and math.isinf(one.high) for one in same) for same in there)
    return Pooled(Estimate(mean, stderr, mean - half, mean + half, n, "standard error"), n, gaps, loose)
