"""Outcome of each measure on each member, computed once.

Three seeds tell a wrong interval from a right one only roughly: of the seven hundred sampled numbers of the zoo five
have two misses of three although their intervals cover in 95 % of the seeds. So where two of three miss, further seeds
decide; a miss by more than three half-widths decides at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache

from scipy.stats import binom

from lossscope.errors import LossscopeError
from zoo.checks import Check, changed, kept
from zoo.measures import MEASURES, SEEDED, Bench
from zoo.member import Parts
from zoo.table import MEMBERS
from zoo.truth import Truth

__all__ = ["MISSES", "Outcome", "outcome"]

MISSES = 0.05  # share of the 95 % intervals that may miss
FURTHER = 37  # further seeds where two of three miss: seven misses of forty are allowed, 99.9 % of right intervals pass


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
            allowed = max(1, binom.ppf(0.999, len(found), MISSES)) if len(found) > 3 else 1
            if any(check.far or not check.sampled for check in missed) or len(missed) > allowed:
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
    built, found = parts(member), list[tuple[Check, ...]]()
    before = kept(built)
    try:
        found += [_checks(member, measure, seed) for seed in (MEMBERS[member].seeds if measure in SEEDED else (0,))]
        if len(found) > 1 and Outcome(tuple(found)).failures:
            first = max(MEMBERS[member].seeds) + 1
            found += [_checks(member, measure, first + more) for more in range(FURTHER)]
    except LossscopeError as error:
        return Outcome(refusal=str(error), touched=tuple(changed(before, kept(built))))
    except Exception as error:
        return Outcome(error=f"{type(error).__name__}: {error}", touched=tuple(changed(before, kept(built))))
    return Outcome(tuple(found), touched=tuple(changed(before, kept(built))))


def _checks(member: str, measure: str, seed: int) -> tuple[Check, ...]:
    """Measure a member with one seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of compiled models and slow batching rules
        return tuple(MEASURES[measure](Bench(MEMBERS[member], parts(member), truth(member), seed)))
