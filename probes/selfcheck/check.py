"""A statement with a known answer, and how it came out: held, did not hold, or could not be judged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

__all__ = ["Check", "Judge", "NotJudgedError", "Place", "Reading", "check"]


@dataclass(frozen=True)
class Check:
    """A statement that was checked, and how it came out.

    Attributes:
        name: Its name, one for each statement.
        what: The statement in words.
        figure: How far the measured is from the known; nan where nothing was measured.
        bound: The largest figure that lets the statement hold.
        held: Whether it held; None where it could not be judged, which is no pass.
        why: What the figure was taken from; where it is missing, the reason and what to do.
    """

    name: str
    what: str
    figure: float
    bound: float
    held: bool | None
    why: str


@dataclass(frozen=True)
class Place:
    """Where checks are made: the dtype of the numbers, and the device that multiplies them."""

    dtype: torch.dtype
    device: torch.device

    @property
    def eps(self) -> float:
        """The distance from 1 to the next number of the dtype."""
        return float(torch.finfo(self.dtype).eps)


class NotJudgedError(Exception):
    """Why a statement cannot be judged here, and what to do about it."""


Reading: TypeAlias = tuple[float, float, str]  # figure, bound, what it was taken from


@dataclass(frozen=True)
class Judge:
    """What finds out whether a statement holds at a place; made by `check`.

    The statement holds where the figure is at most the bound; a figure of nan does not hold. A reading that raises has
    failed, whatever it raises; only `NotJudgedError` says that nothing can be said.
    """

    name: str
    what: str
    read: Callable[[Place], Reading]

    def __call__(self, place: Place) -> Check:
        """How the statement comes out there; never raises."""
        try:
            figure, bound, why = self.read(place)
        except NotJudgedError as reason:
            return Check(self.name, self.what, math.nan, math.nan, None, str(reason))
        except Exception as error:
            words = " ".join(str(error).split())
            return Check(self.name, self.what, math.nan, math.nan, False, f"it raised {type(error).__name__}: {words}")
        return Check(self.name, self.what, figure, bound, figure <= bound, why)


def check(name: str, what: str) -> Callable[[Callable[[Place], Reading]], Judge]:
    """A decorator that makes a judge of a function that takes a reading.

    Args:
        name: Of the check.
        what: The statement.

    Returns:
        The decorator.

    Example:
        >>> @check("one", "one is one")
        ... def one(place):
        ...     return abs(1 - 1), place.eps, "integers"
        >>> one(Place(torch.float32, torch.device("cpu"))).held
        True
    """

    def decorate(read: Callable[[Place], Reading]) -> Judge:
        return Judge(name, what, read)

    return decorate
