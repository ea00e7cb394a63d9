"""Decision rule on arrays: intervals of paired log-ratios, a word for each row, and the status of all rows together."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from lossscope.landscape.verdicts.verdict import Status, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CONFIDENCE",
    "LEAST_PAIRS",
    "MARGIN",
    "Decision",
    "decide",
    "interval",
    "pairs_needed",
    "smallest_effect",
    "status_of",
    "word_of",
]

CONFIDENCE: Final = 0.95
LEAST_PAIRS: Final = 6  # five equal signs come by chance once in 16
MARGIN: Final = 1.25  # ratio below which a difference is called small
POWER: Final = 0.8
MOST_PAIRS: Final = 1000  # beyond it no number of pairs is named

FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Decision:
    """Intervals and words of rows, and the status of each set of rows. Shape (...,) is that of the leading axes."""

    mean: FloatArray  # (..., rows) mean log-ratio; nan where a pair has no value
    low: FloatArray  # (..., rows)
    high: FloatArray  # (..., rows)
    flatter: BoolArray  # (..., rows)
    sharper: BoolArray  # (..., rows)
    small: BoolArray  # (..., rows) within the margin, whatever the sign
    status: npt.NDArray[np.str_]  # (...,)


def interval(differences: npt.ArrayLike, confidence: float = CONFIDENCE) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return mean and Student t interval over the last axis.

    Args:
        differences: Numbers of shape `(..., n)`; a nan makes its row nan.
        confidence: Coverage of the interval.

    Returns:
        Mean, low and high, each of shape `(...,)`. Where all numbers are equal, all three are that number. The interval
        of one number is nan.
    """
    from scipy.stats import ttest_1samp

    d = np.asarray(differences, dtype=np.float64)
    mean = d.mean(axis=-1)
    if d.shape[-1] < 2:
        return mean, np.full_like(mean, math.nan), np.full_like(mean, math.nan)
    equal = (d == d[..., :1]).all(axis=-1)
    spread = np.where(equal[..., None], np.arange(d.shape[-1], dtype=np.float64), d)  # placeholder, replaced below
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rounding, where the numbers are nearly equal
        found: Any = ttest_1samp(spread, 0.0, axis=-1).confidence_interval(confidence)
    constant = d[..., 0]
    return (
        np.where(equal, constant, mean),
        np.where(equal, constant, np.asarray(found.low)),
        np.where(equal, constant, np.asarray(found.high)),
    )


def decide(differences: npt.ArrayLike, *, margin: float = MARGIN, confidence: float = CONFIDENCE) -> Decision:
    """Judge sets of rows that have the same number of pairs.

    Args:
        differences: Paired log-ratios, `(..., rows, n)`: below 0 where A is flatter, nan where a pair has no value.
        margin: Ratio below which a difference is small.
        confidence: Coverage of each row's interval.
    """
    d = np.asarray(differences, dtype=np.float64)
    mean, low, high = interval(d, confidence)
    flatter, sharper, small = words(low, high, margin)
    return Decision(mean, low, high, flatter, sharper, small, status_of(flatter, sharper, small, least=d.shape[-1]))


def words(low: FloatArray, high: FloatArray, margin: float) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Return masks of the rows that are flatter, sharper, and small, from the ends of their log-intervals."""
    return high < 0, low > 0, (low > -math.log(margin)) & (high < math.log(margin))


def status_of(flatter: BoolArray, sharper: BoolArray, small: BoolArray, *, least: int) -> npt.NDArray[np.str_]:
    """Return the status of sets of rows: the first rule that applies.

    Args:
        flatter: Mask, `(..., rows)`.
        sharper: Likewise.
        small: Likewise. A row in none of the three masks is open.
        least: Number of pairs of the task with the fewest.

    Returns:
        Statuses, `(...,)`.
    """
    if not flatter.shape[-1]:
        raise ValueError("a status needs at least one row")
    closed = flatter | sharper | small
    rules = [
        (np.full(flatter.shape[:-1], least < LEAST_PAIRS), "NOT_JUDGED"),
        (flatter.all(-1), "SUPPORTED"),
        (sharper.all(-1), "CONTRADICTED"),
        (small.all(-1), "EQUIVALENT"),
        ((flatter.any(-1) & sharper.any(-1)) | closed.all(-1), "MIXED"),
    ]
    return np.select([mask for mask, _ in rules], [name for _, name in rules], "INCONCLUSIVE")


def word_of(low: float, high: float, margin: float = MARGIN) -> tuple[Word, bool]:
    """Return the word of a row without gaps, and True if it is small, from the ends of its log-interval."""
    flatter, sharper, small = (bool(mask) for mask in words(np.array(low), np.array(high), margin))
    return "flatter" if flatter else "sharper" if sharper else "small" if small else "unclear", small


def status_of_words(marks: Sequence[tuple[Word, bool]], least: int) -> Status:
    """Return the status of rows from their words and `small` marks."""
    names = np.array([word for word, _ in marks])
    small = np.array([mark and word != "open" for word, mark in marks], dtype=bool)
    found: Any = status_of(names == "flatter", names == "sharper", small, least=least).item()
    status: Status = found
    return status


def smallest_effect(spread: float, n: int) -> float:
    """Return the ratio below 1 that n pairs of this spread call flatter in 80 of 100 tries; nan for one pair."""
    return math.exp(-_reach(n) * spread / math.sqrt(n)) if n > 1 else math.nan


def pairs_needed(mean: float, spread: float, margin: float = MARGIN) -> int | None:
    """Return the number of pairs that decide a row in 80 of 100 tries, if mean and spread are what they seem.

    Either the interval leaves out 0 or it lies within the margin, whichever needs fewer pairs; None above 1000 pairs.
    """
    distance = max(abs(mean), math.log(margin) - abs(mean))
    for n in range(LEAST_PAIRS, MOST_PAIRS + 1):
        if _reach(n) * spread <= distance * math.sqrt(n):
            return n
    return None


def _reach(n: int) -> float:
    """Return the distance of an effect from a limit that is seen with 80 %, in standard errors over n pairs."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, n - 1) + t.ppf(POWER, n - 1))
