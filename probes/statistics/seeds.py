"""Several seeds out of one."""

from __future__ import annotations

import numpy as np

__all__ = ["independent_seeds"]


def independent_seeds(seed: int, count: int) -> list[int]:
    """Seeds whose random numbers have nothing to do with one another, always the same ones for one seed.

    Where errors are to add in quadrature, each measurement needs its own: equal seeds give equal probes to all
    operators of one size, and `seed + 1` may be the caller's next seed.

    Args:
        seed: Any integer.
        count: How many.

    Returns:
        Integers from 0 to 2^63 - 1; the first ones do not depend on `count`.
    """
    return [int(s) >> 1 for s in np.random.SeedSequence(seed % 2**64).generate_state(count, np.uint64)]
