"""Drawing of heat maps with matplotlib, as vector cells: the page embeds no pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import HeatMap, HeatPanel, Numbers
from lossscope.reports.render.style import RC, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

__all__ = ["draw_heat_panel", "heat_map_figure"]

_ROW: Final = 0.2  # inches
_FRAME: Final = 0.45  # inches around the rows of a panel
_FOOT: Final = 0.7  # inches
_COLORS: Final = "cividis"  # readable without color vision, and in print
_LEVELS: Final = 48  # from 50 on, the scale beside the figure would be pixels
_TICKS: Final = 8  # labels of columns
_APART: Final = 1.0  # columns between the cells and the values beside them
_LONGEST: Final = 24  # characters of a label


def heat_map_figure(data: HeatMap) -> Figure:
    """Return the heat map: its panels below each other, with one scale of colors."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**RC, "axes.grid": False}):
        tall = len(data.panels) * (_ROW * max(len(data.rows), 1) + _FRAME) + _FOOT
        figure = Figure(figsize=(WIDTH, tall), layout="constrained")
        axes = figure.subplots(len(data.panels), squeeze=False, sharex=True)[:, 0]
        meshes = [draw_heat_panel(ax, data, panel) for ax, panel in zip(axes, data.panels, strict=True)]
        axes[-1].set_xlabel(data.x.label)
        bar = figure.colorbar(meshes[0], ax=list(axes), shrink=0.8, pad=0.02)
        bar.set_label(data.color.label)
        bar.outline.set_visible(False)
    return figure


def draw_heat_panel(ax: Axes, data: HeatMap, panel: HeatPanel) -> QuadMesh:
    """Draw the cells of a panel and the values beside them; missing cells are left empty."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    low, high = data.color.limits or (0.0, 1.0)
    scale = LogNorm(low, high) if data.color.scale == "log" else Normalize(low, high)
    looks: dict[str, Any] = {"norm": scale, "cmap": colormaps[_COLORS].resampled(_LEVELS)}
    edges = np.arange(len(data.rows) + 1) - 0.5
    count = len(data.columns)
    mesh = ax.pcolormesh(np.arange(count + 1) - 0.5, edges, _cells(panel.values), **looks)
    ticks = np.unique(np.linspace(0, count - 1, min(_TICKS, count)).round().astype(int))
    labels = [f"{data.columns[place]:g}" for place in ticks]
    if panel.beside:
        left = count - 0.5 + _APART
        ax.pcolormesh([left, left + 1.5], edges, _cells([(one,) for one in panel.beside]), **looks)
        ax.text(left + 0.75, -0.6, data.beside, ha="center", va="bottom", fontsize=8.0)
    ax.set_title(panel.title, loc="left")
    ax.set_xticks(ticks, labels)
    ax.set_yticks(range(len(data.rows)), [_short(row) for row in data.rows])
    ax.set_ylim(len(data.rows) - 0.5, -0.5)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return mesh


def _cells(rows: Any) -> Any:
    """Return rows of numbers as a masked array: missing cells are not drawn."""
    numbers: list[Numbers] = list(rows)
    return np.ma.masked_invalid([[np.nan if one is None else one for one in row] for row in numbers])


def _short(name: str) -> str:
    """Return a label that is printable and not too long: the end of a name tells more than its beginning."""
    name = printable(name)
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"
