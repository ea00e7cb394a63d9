"""When to look: every so many steps, or at steps spaced evenly in their logarithm."""

from __future__ import annotations

import math

__all__ = ["growing", "log_spaced"]


def log_spaced(last: int, count: int) -> tuple[int, ...]:
    """`count` distinct steps from 0 to `last`, evenly spaced in log(step), fewer only where there are fewer.

    The smallest steps lie closer than one apart on that scale and move up to the next free step.
    """
    if count < 1 or last < 0:
        return ()
    if count == 1 or last == 0:
        return (last,) if count == 1 else (0,)
    if last < count:
        return tuple(range(last + 1))
    steps = [0]
    for i in range(1, count):
        # From the present step to the last one, in as many equal ratios as there are visits left.
        start, left = max(steps[-1], 1), count - i
        ratio = (last / start) ** (1 / left) if i > 1 else last ** (1 / (count - 1))
        steps.append(last if left == 1 else max(steps[-1] + 1, round(start * ratio)))
    return tuple(steps)


def growing(step: int, factor: float) -> int:
    """The next step to look at after `step`, where the end is unknown: about `factor` times as far."""
    return max(step + 1, math.ceil(step * factor))
