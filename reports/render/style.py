"""The look of every figure: one width, one palette, one set of sizes.

Colors are roles. In the page each stands for a variable, so that a figure follows the page into the dark.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["HEIGHT", "PALETTE", "RC", "ROLES", "WIDTH", "hue_color"]

WIDTH: Final = 5.2  # inches
HEIGHT: Final = 3.4  # inches

# Okabe and Ito's set for color-blind readers, without its black and yellow.
PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_INK: Final = "#22262b"
_MUTED: Final = "#6a7078"
_GRID: Final = "#e3e6ea"

# Hex as it stands in the drawing, and the variable of the page that takes its place.
ROLES: Final = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{color: f"--hue-{place}" for place, color in enumerate(PALETTE)},
}

RC: Final[dict[Any, object]] = {
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and restyled
    "svg.hashsalt": "lossscope",  # equal data gives equal bytes
    "text.parse_math": False,  # a dollar in a run's name is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 8.5,
    "legend.fontsize": 8.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def hue_color(hue: int) -> str:
    """The color of an arm by its place; beyond the palette's end it begins again."""
    return PALETTE[hue % len(PALETTE)]
