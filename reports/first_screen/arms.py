"""Arms in a sentence: one phrase for each, with the numbers of its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lossscope.landscape.analysis.arms import by_arm
from lossscope.reports.content import Quantity
from lossscope.reports.shared.number_format import plain, quantity_text

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["joined_arms", "measured", "of_arm", "phrase", "spread"]

_MOST: Final = 3  # arms in a sentence
_NEGLIGIBLE: Final = 1e-4  # share of a value


def of_arm(runs: Sequence[Run], value: Callable[[Run], Quantity | None]) -> dict[str, list[Quantity]]:
    """Return the numbers of each arm that has any, one for each run that has it."""
    found = {arm: [one for run in members if (one := value(run)) is not None] for arm, members in by_arm(runs).items()}
    kept = {arm: [one for one in some if one.value is not None] for arm, some in found.items()}
    return {arm: some for arm, some in kept.items() if some}


def spread(found: Sequence[Quantity]) -> Quantity:
    """Return one number as it is; of several their median and range, which is wider than their errors or as wide."""
    if len(found) == 1:
        return found[0]
    values = [one.value for one in found if one.value is not None]
    return Quantity(float(np.median(values)), low=min(values), high=max(values))


def measured(found: Quantity) -> str:
    """Return a number with its error or range; of an error that no reader needs, only that it is small."""
    if found.value and found.error and found.low is None and found.error < _NEGLIGIBLE * abs(found.value):
        return f"{plain(found.value)} ± <{plain(_NEGLIGIBLE * abs(found.value), 1)}"
    return quantity_text(found if found.error else replace(found, error=None))


def joined_arms(phrases: Mapping[str, str], unit: str = "") -> str:
    """Return one phrase for each arm, with its name where there are several, and the unit once; of many the first."""
    if len(phrases) == 1:
        return next(iter(phrases.values())) + _unit(unit)
    shown = [f"{words}{_unit(unit)} ({arm})" for arm, words in list(phrases.items())[:1]]
    shown += [f"{words} ({arm})" for arm, words in list(phrases.items())[1:_MOST]]
    more = len(phrases) - len(shown)
    return "; ".join(shown) + (f"; and {more} more arm{'s' * (more > 1)}" if more else "")


def phrase(found: Mapping[str, Sequence[Quantity]], unit: str = "") -> str:
    """Return the number of each arm; of many arms the smallest and the largest median."""
    if len(found) > _MOST:
        ends = {arm: spread(found[arm]) for arm in sorted(found, key=lambda arm: spread(found[arm]).value or 0.0)}
        (least, low), *_, (most, high) = ends.items()
        return f"{measured(low)} ({least}) to {measured(high)}{_unit(unit)} ({most}) in {len(found)} arms"
    return joined_arms({arm: measured(spread(some)) for arm, some in found.items()}, unit)


def _unit(unit: str) -> str:
    """Return a unit after a blank; nothing for a number without one."""
    return f" {unit}" if unit not in ("", "1") else ""
