"""Self-check: a statement with a known answer, and its result (passed, failed or inconclusive)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

__all__ = ["Check", "CheckResult", "InconclusiveError", "Place", "Reading", "check"]


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        name: Unique name of the check.
        statement: The statement that was checked.
        error: Distance of the measured value from the known one; nan where nothing was measured.
        bound: The largest error with which the check passes.
        passed: True if it passed, False if it failed; None if it is inconclusive, which does not count as passed.
        detail: How the error is defined; where it is missing, the reason and what to do.
    """

    name: str
    statement: str
    error: float
    bound: float
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Place:
    """The dtype and the device with which checks are made."""

    dtype: torch.dtype
    device: torch.device

    @property
    def eps(self) -> float:
        """Distance from 1 to the next larger number of the dtype."""
        return float(torch.finfo(self.dtype).eps)


class InconclusiveError(Exception):
    """A check cannot be made here; the message says why and what to do."""


Reading: TypeAlias = tuple[float, float, str]  # error, bound, how the error is defined


@dataclass(frozen=True)
class Check:
    """A statement and the function that measures it; made by the decorator `check`.

    The check passes if the error is at most the bound; an error of nan fails. It fails if the measurement raises
    anything but `InconclusiveError`.
    """

    name: str
    statement: str
    measure: Callable[[Place], Reading]

    def __call__(self, place: Place) -> CheckResult:
        """Run the check and return its result; never raises."""
        try:
            error, bound, detail = self.measure(place)
        except InconclusiveError as reason:
            return CheckResult(self.name, self.statement, math.nan, math.nan, None, str(reason))
        except Exception as raised:
            detail = f"it raised {type(raised).__name__}: {' '.join(str(raised).split())}"
            return CheckResult(self.name, self.statement, math.nan, math.nan, False, detail)
        return CheckResult(self.name, self.statement, error, bound, error <= bound, detail)


def check(name: str, statement: str) -> Callable[[Callable[[Place], Reading]], Check]:
    """Return a decorator that makes a check of a function that measures.

    Args:
        name: Unique name of the check.
        statement: The statement that is checked.

    Returns:
        The decorator.

    Example:
        >>> @check("one", "one is one")
        ... def one(place):
        ...     return abs(1 - 1), place.eps, "integers"
        >>> one(Place(torch.float32, torch.device("cpu"))).passed
        True
    """

    def decorate(measure: Callable[[Place], Reading]) -> Check:
        return Check(name, statement, measure)

    return decorate
