"""A rule of diagnosis: a question about a run, how it is decided, and how often it is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from lossscope.landscape.run import Run

__all__ = ["Level", "Rule", "Verdict"]

Level: TypeAlias = Literal["fine", "look", "act"]


@dataclass(frozen=True)
class Verdict:
    """The answer of a rule for a run."""

    level: Level  # fine: as it should be, look: may need attention, act: something is wrong
    evidence: str  # the numbers, as a clause
    step: int | None = None  # where it was seen first, if that is one step


@dataclass(frozen=True)
class Rule:
    """A question about a run."""

    key: str
    question: str
    judge: Callable[[Run], Verdict | None]  # None: the run does not have what the rule is about
    null: str  # null model: the healthy run of which the rate of false alarms is stated
    false_alarms: float  # alarms per 1000 steps of the null model, at most
    advice: str
    reports: tuple[str, ...] = ()  # kinds of reports beside the overview that show it
