"""Number formatting: no more digits than the uncertainty justifies.

The last digit shown is the second of a `± error` or of the half-width of an interval, and the first of an error that is
stated elsewhere. If the ends of an interval differ by a factor above 100, or a nonzero number would read as zero, each
number has two digits of its own; a single number has at least one.
"""

from __future__ import annotations

import math
from typing import Final

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Cell, Column, Quantity

__all__ = ["cell_text", "header", "percent", "plain", "quantity_text"]

_MISSING: Final = "–"
_MOST_DIGITS: Final = 6  # significant digits of a value, however small its error
_RANGE_DIGITS: Final = 4  # significant digits of a value with a range only
_WIDE_DIGITS: Final = 2  # significant digits of each number of an interval that spans orders of magnitude
_SMALL, _LARGE = 1e-3, 1e6  # outside this interval, scientific notation
_TINY, _HUGE = 1e-290, 1e290  # outside this interval, arithmetic of values and errors could over- or underflow


def plain(value: float | None, digits: int = 4) -> str:
    """Return the value with `digits` significant digits; a dash if it is missing.

    Example:
        >>> plain(1234.567), plain(0.0000123), plain(None)
        ('1235', '1.230e-05', '–')
    """
    if value is None or not math.isfinite(value):
        return _MISSING
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    if _SMALL <= abs(rounded) < _LARGE:
        return f"{rounded:.{max(0, digits - 1 - _exponent(rounded))}f}"
    return f"{value:.{digits - 1}e}"


def quantity_text(quantity: Quantity) -> str:
    """Return the quantity with its error, its interval, or both.

    Example:
        >>> quantity_text(Quantity(12.3456, error=0.0501))
        '12.346 ± 0.050'
        >>> quantity_text(Quantity(12.3456, low=12.11, high=12.52))
        '12.35 [12.11, 12.52]'
        >>> quantity_text(Quantity(12.0, low=12.0, high=12.0, missing=2))
        '12.00 (2 missing)'
        >>> quantity_text(Quantity(0.5, low=-math.inf, high=math.inf))
        '0.50 [−∞, ∞]'
        >>> quantity_text(Quantity(12.3456, known_error=0.5))
        '12.3'
    """
    return _value_text(quantity) + (f" ({quantity.missing} missing)" if quantity.missing else "")


def _value_text(quantity: Quantity) -> str:
    """Return the value with its error and its range, without the number of missing values."""
    value, error, low, high = quantity.value, quantity.error, quantity.low, quantity.high
    if value is None or not math.isfinite(value):
        return _MISSING
    if any(one and math.isfinite(one) and not _TINY < abs(one) < _HUGE for one in (value, error, low, high)):
        return _far_text(value, error, low, high)
    written = [_with_error(value, error)] if error else []
    known = quantity.known_error or 0.0
    if low is not None and high is not None and low < high:
        if math.isinf(low) or math.isinf(high):
            return f"{written[0] if written else plain(value, 2)} [{_end(low)}, {_end(high)}]"
        middle, left, right = _interval(value, low, high, _MOST_DIGITS if written else _RANGE_DIGITS, known)
        return f"{written[0] if written else middle} [{left}, {right}]"
    return written[0] if written else _limited(value, known)


def _far_text(value: float, error: float | None, low: float | None, high: float | None) -> str:
    """Return a quantity of extreme size with two digits for each of its numbers."""
    written = plain(value, 2) + (f" ± {plain(error, 2)}" if error else "")
    return written + (f" [{_end(low)}, {_end(high)}]" if low is not None and high is not None and low < high else "")


def percent(share: float) -> str:
    """Return a share as a percentage with two digits, `0.0612` as `6.1 %`."""
    return f"{plain(100 * share, 2)} %"


def cell_text(cell: Cell) -> str:
    """Return a table cell as text; a dash if it is missing."""
    if cell is None:
        return _MISSING
    if isinstance(cell, Quantity):
        return quantity_text(cell)
    if isinstance(cell, str):
        return printable(cell)
    return str(cell) if isinstance(cell, int) else plain(cell)


def header(column: Column) -> str:
    """Return the title of a column with its unit."""
    return f"{column.title} ({column.unit})" if column.unit not in ("", "1") else column.title


def _exponent(value: float) -> int:
    """Return the decimal exponent of a nonzero value."""
    return math.floor(math.log10(abs(value)))


def _with_error(value: float, error: float) -> str:
    """Return `value ± error`, the error with two digits and the value to the same decimal place."""
    error = float(f"{error:.1e}")
    size = max(abs(value), error)
    if _exponent(size) - _exponent(error) + 2 > _MOST_DIGITS:
        return f"{plain(value, _MOST_DIGITS)} ± {error:.1e}"
    if _SMALL <= size < _LARGE:
        places = 1 - _exponent(error)
        return f"{_fixed(value, places)} ± {_fixed(error, places)}"
    power = _exponent(size)
    places = 1 - _exponent(error) + power
    return f"({_fixed(value / 10.0**power, places)} ± {_fixed(error / 10.0**power, places)})e{power:+03d}"


def _limited(value: float, known: float, most: int = _RANGE_DIGITS) -> str:
    """Return a value with `most` digits, or as many as end at the first digit of its known error, at least one."""
    if value == 0 or not _TINY < known < _HUGE:
        return plain(value, most)
    return plain(value, max(1, min(_exponent(value) - _exponent(known) + 1, most)))


def _end(value: float) -> str:
    """Return an end of an interval, which may be infinite."""
    return plain(value, 2) if math.isfinite(value) else ("\N{MINUS SIGN}∞" if value < 0 else "∞")


def _interval(value: float, low: float, high: float, most: int, known: float = 0.0) -> tuple[str, str, str]:
    """Return value and ends with two digits of the half-width, or `most` digits if one digit of the width remains.

    The last digit is not below the first of an error that is stated elsewhere. If the ends differ by a factor above
    100, or a nonzero number would read as zero, each has two digits of its own.
    """
    size = max(abs(low), abs(high), abs(value))
    half = _exponent((high - low) / 2)
    places = min(1 - half, max(most - 1 - _exponent(size), -half))
    if _TINY < known < _HUGE:
        places = min(places, -_exponent(known))
    lost = any(one != 0 and round(one, places) == 0 for one in (value, low, high))
    wide = lost or (low > 0 and high / low > 100)
    if _SMALL <= size < _LARGE and not wide:
        return _fixed(value, places), _fixed(low, places), _fixed(high, places)
    if wide:
        shown = [_limited(one, known, _WIDE_DIGITS) for one in (value, low, high)]
        return shown[0], shown[1], shown[2]
    return _to_place(value, places), _to_place(low, places), _to_place(high, places)


def _to_place(value: float, places: int) -> str:
    """Return a very large or small value rounded to a decimal place."""
    digits = _exponent(value) + places + 1 if value else 0
    return plain(value, digits) if digits > 0 else "0"


def _fixed(value: float, places: int) -> str:
    """Return the value rounded to a decimal place, which may lie left of the point; never minus zero."""
    return f"{round(value, places) + 0.0:.{max(0, places)}f}"
