"""Names of the statistics that a bound may be about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.verdicts.wrong_values import nearest, shown

__all__ = ["STATISTICS", "Statistic", "parse_statistic"]

STATISTICS: Final = {
    "test_loss": "test loss of A minus that of B at the level, in nats",
    "step_ratio": "steps of B up to the level over those of A",
    "first_step(COLUMN >= x)": "steps of B until a column reaches x over those of A, such as test_accuracy >= 0.99",
    "seconds_ratio": "mean seconds of a step of A over those of B, without evaluations",
    "overfit": "final over least test loss of A",
    "ascent_share": "share of the steps of A that took a second gradient",
    "memory_difference(k)": "direction memory of the shear of A minus that of its gradient, k steps later",
}
_COLUMNS: Final = ("test_accuracy", "train_accuracy")
_FIRST: Final = re.compile(r"first_step\(\s*(\w+)\s*>=\s*([0-9.eE+-]{1,30})\s*\)")
_MEMORY: Final = re.compile(r"memory_difference\(\s*([0-9]{1,9})\s*\)")
_PAIRED: Final = {"test_loss": False, "step_ratio": True, "seconds_ratio": True}  # True: a ratio


@dataclass(frozen=True)
class Statistic:
    """A statistic with its arguments."""

    name: str  # without arguments
    paired: bool  # compares two arms
    ratio: bool  # judged in logarithms
    column: str = ""  # of `first_step`
    level: float = 0.0  # of `first_step`
    lag: int = 0  # of `memory_difference`

    @property
    def censored(self) -> bool:
        """True for times that a run may not reach."""
        return self.name in ("first_step", "step_ratio")


def parse_statistic(text: str, place: str) -> Statistic:
    """Return the statistic of a name such as `first_step(test_accuracy >= 0.99)`.

    Raises:
        ConfigError: There is no such statistic; the message names the nearest.
    """
    name = text.strip()
    if name in _PAIRED:
        return Statistic(name, True, _PAIRED[name])
    if name in ("overfit", "ascent_share"):
        return Statistic(name, False, name == "overfit")
    if (found := _MEMORY.fullmatch(name)) and int(found[1]) > 0:
        return Statistic("memory_difference", False, False, lag=int(found[1]))
    if found := _FIRST.fullmatch(name):
        return _first_step(found[1], found[2], place)
    raise ConfigError(f"{place}: unknown statistic {shown(text)}; {nearest(name, STATISTICS)}")


def _first_step(column: str, level: str, place: str) -> Statistic:
    """Return the statistic of the first step at which a column reaches a level."""
    if column not in _COLUMNS:
        raise ConfigError(f"{place}: first_step knows the columns {', '.join(_COLUMNS)}, got {shown(column)}")
    try:
        return Statistic("first_step", True, True, column, float(level))
    except ValueError:
        raise ConfigError(f"{place}: first_step({column} >= x) needs a number x, got {shown(level)}") from None
