"""Weights of which a part has no effect: behind a sum, a layer may read less than another one has written."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lossscope.probes.gauge.features import Space
from lossscope.probes.gauge.symmetry import Slot

__all__ = ["parts_without_effect"]


def parts_without_effect(
    space: Space, *, mixes: bool, is_free: Callable[[Slot], bool], rank: Callable[[Iterable[Slot]], int]
) -> list[str]:
    """Return reasons for which weights around a space may change without any effect, other than by its symmetry.

    A summand that is added last, for example, is only read by the layers behind the sum. Where these have fewer outputs
    than the sum has features, what they do not see of the summand may be anything; likewise for what a layer would
    read of directions that nothing has been written to yet.

    Args:
        space: The features.
        mixes: True if the basis of all that is written and read is fixed, with the parts that nothing reads or writes.
        is_free: Returns True for weights that can be changed, and stay.
        rank: Returns the rank of weights, one row for each feature.
    """
    found, every = [], [read.slot for read in space.reads]
    for part in dict.fromkeys(part for value in space.values for part in value.parts):
        reads = [read for read in space.reads if part in read.value.parts]
        seen = any(part in value.parts for value in space.bends) or any(read.is_grouped for read in reads)
        if seen or not is_free(part) or (mixes and len(reads) == len(space.reads)):
            continue
        slots = [read.slot for read in reads]
        if rank(slots) < (rank(every) if mixes else space.size):
            names = ", ".join(dict.fromkeys(slot.name for slot in slots))
            found.append(f"{part.name}: what {names} cannot read of it has no effect")
    for read in space.reads:
        value = read.value
        if value.spans or read.is_grouped or not is_free(read.slot) or (mixes and set(value.parts) == {*space.writes}):
            continue
        if rank(value.parts) < (rank(space.writes) if mixes else space.size):
            names = ", ".join(dict.fromkeys(part.name for part in value.parts))
            found.append(f"{read.slot.name}: what {names} cannot write for it has no effect")
    return found
