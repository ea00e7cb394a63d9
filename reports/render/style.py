"""Figure style: size, palette and matplotlib settings.

Each color is a role with a variable of the HTML page, so that figures follow the dark mode of the page.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["HEIGHT", "PALETTE", "RC", "ROLES", "WIDTH", "hue_color"]

WIDTH: Final = 5.2  # inches
HEIGHT: Final = 3.4  # inches

# the color-blind-safe palette of Okabe and Ito, without black and yellow; then ten more, for many arms
PALETTE: Final = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    *("#6f4fa3", "#8c5a3c", "#7a8b00", "#a32035", "#5b6b7b", "#b5179e"),
    *("#00808f", "#27408b", "#b8a100", "#e0607e"),
)
_INK: Final = "#22262b"
_MUTED: Final = "#6a7078"
_GRID: Final = "#e3e6ea"

# color in the drawing, and the page variable that replaces it
ROLES: Final = {
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--grid",
    **{color: f"--hue-{place}" for place, color in enumerate(PALETTE)},
}

RC: Final[dict[Any, object]] = {
    "svg.fonttype": "none",  # text is kept as text: accessible, searchable and restylable
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
    """Return the color of an arm by its index; the palette repeats after sixteen."""
    return PALETTE[hue % len(PALETTE)]
