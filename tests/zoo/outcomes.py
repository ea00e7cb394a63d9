"""Outcome of each measure on each member, computed once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

from lossscope.errors import LossscopeError
from zoo.checks import Check, changed, kept
from zoo.measures import MEASURES, SEEDED, Bench
from zoo.member import Parts
from zoo.table import MEMBERS
from zoo.truth import Truth

__all__ = ["Outcome", "outcome"]


@dataclass(frozen=True)
class Outcome:
    """What a measure said of a member, by seed."""

    checks: tuple[tuple[Check, ...], ...] = ()
    refusal: str = ""  # the message of a known error
    error: str = ""  # any other exception
    touched: tuple[str, ...] = ()  # what was not left as it was

    @property
    def sampled(self) -> list[Check]:
        """The checks whose intervals are statistical."""
        return [check for checks in self.checks for check in checks if check.sampled]

    @property
    def failures(self) -> list[str]:
        """The numbers that are wrong: missed by two seeds, by far, or exact and missed."""
        by_name: dict[str, list[Check]] = {}
        for checks in self.checks:
            for check in checks:
                by_name.setdefault(check.name, []).append(check)
        wrong = []
        for found in by_name.values():
            missed = [check for check in found if check.missed]
            if any(check.far or not check.sampled for check in missed) or len(missed) >= 2:
                wrong.append("; ".join(map(str, missed)))
        return wrong


@cache
def parts(member: str) -> Parts:
    """Return the parts of a member, shared by its measures, each of which must leave them as they are."""
    return MEMBERS[member].build()


@cache
def truth(member: str) -> Truth:
    """Return the true values of a member."""
    return Truth(MEMBERS[member])


@cache
def outcome(member: str, measure: str) -> Outcome:
    """Measure a member, with three seeds if the measure draws random numbers."""
    right, built, found = truth(member), parts(member), []
    before = kept(built)
    try:
        for seed in MEMBERS[member].seeds if measure in SEEDED else (0,):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, of compiled models and slow batching rules
                found.append(tuple(MEASURES[measure](Bench(MEMBERS[member], built, right, seed))))
    except LossscopeError as error:
        return Outcome(refusal=str(error), touched=tuple(changed(before, kept(built))))
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {error}", touched=tuple(changed(before, kept(built))))
    return Outcome(tuple(found), touched=tuple(changed(before, kept(built))))
