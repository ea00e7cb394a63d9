"""Axes of figures: labels with units, scales, limits and tick labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import Axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axis_label", "dress"]

_POWERS: Final = 3  # with this many powers of ten, an axis needs no tick labels between them


def dress(ax: Axes, x: Axis, y: Axis) -> None:
    """Set labels with units, scales, limits, and tick labels without mathematical typesetting."""
    ax.set(xlabel=axis_label(x), ylabel=axis_label(y))
    if not ax.has_data():
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center")
    ax.margins(x=0.02)
    for axis, described, scale in ((ax.xaxis, x, ax.set_xscale), (ax.yaxis, y, ax.set_yscale)):
        linear = {"linthresh": described.linear_to, "linscale": described.linear_decades}
        scale(described.scale, **(linear if described.scale == "symlog" else {}))
        if described.scale != "linear":
            _short_numbers(axis, described)
    if y.limits is not None:
        ax.set_ylim(*y.limits)
    if x.limits is not None:
        first, last = x.limits
        ax.set_xlim(first, last * (1.02 if x.scale == "linear" else 1.1))  # room for the last whisker
    if x.falling:
        ax.xaxis.set_inverted(True)


def _short_numbers(axis: Any, described: Axis) -> None:
    """Set few and plain tick labels on a logarithmic axis."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    low, high = described.limits or sorted(axis.get_view_interval())
    if low < 0 < high:
        axis.set_major_locator(FixedLocator(_signed_powers(low, high, described.linear_to)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(NullLocator())
        return
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
    if described.scale == "symlog":
        powers = 10.0 ** np.arange(np.floor(np.log10(high)) + 1)
        axis.set_major_locator(FixedLocator([0.0, *powers]))
        axis.set_minor_locator(NullLocator())
        return
    subs = (1.0,) if _powers_within(low, high) >= _POWERS else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=9))
    axis.set_minor_locator(LogLocator(base=10, subs=range(2, 10), numticks=9))


def _powers_within(low: float, high: float) -> int:
    """Return the number of powers of ten from `low` to `high`; 0 unless both are positive."""
    return int(np.floor(np.log10(high)) - np.ceil(np.log10(low))) + 1 if 0 < low <= high else 0


def _signed_powers(low: float, high: float, least: float) -> list[float]:
    """Return zero and the powers of ten on both sides up to the ends, without those that would overlap zero."""
    first = int(np.ceil(np.log10(least / 3)))
    powers = [10.0**k for k in range(first, int(np.floor(np.log10(max(-low, high)))) + 1)]
    return [*(-p for p in reversed(powers) if -p >= low), 0.0, *(p for p in powers if p <= high)]


def axis_label(axis: Axis) -> str:
    """Return the label with its unit, without control characters."""
    return printable(f"{axis.label} ({axis.unit})" if axis.unit not in ("", "1") else axis.label)
