"""Drawing of planes as surfaces with the value as height; cells with a missing corner are holes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import Contours
from lossscope.reports.render.axes import axis_label
from lossscope.reports.render.contours import COLORS, are_logarithmic, contour_levels, mark_size, panel_values
from lossscope.reports.render.style import RC, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["has_logarithmic_height", "is_inside", "raised_figure"]

_HEIGHT: Final = (3.9, 2.6)  # inches, of one surface and of several beside each other
_VIEW: Final = {"elev": 32.0, "azim": -58.0}  # degrees
_SHARE: Final = 0.7  # height of the box, of its longer side
_NARROWEST: Final = 0.4  # shorter side of the box, of the longer one
_ZOOM: Final = 0.8  # so that labels stay inside
_TICKS: Final = 5
_STROKE: Final = "#c2410c"  # of lines and rims: no color of the scale
_PLATE: Final = {"facecolor": "white", "edgecolor": "none", "alpha": 0.65, "pad": 0.6}  # behind labels


def raised_figure(data: Contours) -> Figure:
    """Return the surfaces beside each other, with one scale of colors and of heights.

    Heights are logarithmic where contours would be and all values are positive: the label says so. Points stand at
    their own values, above or below the surface.
    """
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    values = panel_values(data)
    levels = contour_levels(values)
    scale = ScalarMappable(BoundaryNorm(levels, 256), COLORS)
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH, _HEIGHT[len(values) > 1]), layout="constrained")
        every = [figure.add_subplot(1, len(values), place + 1, projection="3d") for place in range(len(values))]
        for place, ax in enumerate(every):
            _draw(ax, data, place, values, scale)
        bar = figure.colorbar(scale, ax=every, shrink=0.6, pad=0.12 if len(values) == 1 else 0.04, format="%.3g")
        bar.set_label(axis_label(data.color))
        bar.outline.set_visible(False)
    return figure


def has_logarithmic_height(data: Contours) -> bool:
    """Return True if the heights of the surfaces are logarithms of the values."""
    values = panel_values(data)
    own = [one.value for one in data.marks if one.value is not None and math.isfinite(one.value)]
    lowest = min([float(np.nanmin(one)) for one in values if np.isfinite(one).any()] + own, default=0.0)
    return are_logarithmic(values) and lowest > 0


def _draw(ax: Any, data: Contours, place: int, values: list[Any], scale: Any) -> None:
    """Draw one surface with its points."""
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    height = np.log10 if has_logarithmic_height(data) else np.asarray
    x, y = (np.array([math.nan if one is None else one for one in axis]) for axis in (data.columns, data.rows))
    cells, colors = [], []
    for corners, middle in _cells(x, y, values[place]):
        cells.append([(at, up, float(height(one))) for at, up, one in corners])
        colors.append(scale.to_rgba(middle))
    ax.computed_zorder = False  # points stay visible behind the surface
    if cells:
        surface = Poly3DCollection(cells, facecolors=colors, edgecolors=(1, 1, 1, 0.25), linewidths=0.2, zorder=1)
        ax.add_collection3d(surface)
    _draw_marks(ax, data, place, height, scale)
    _dress(ax, data, place, (x, y), [height(one) for one in values])


def _cells(x: Any, y: Any, values: Any) -> Any:
    """Yield the corners of each cell whose corners are all there, and the mean of their values."""
    for i in range(len(y) - 1):
        for k in range(len(x) - 1):
            places = ((i, k), (i, k + 1), (i + 1, k + 1), (i + 1, k))
            corners = [(float(x[b]), float(y[a]), float(values[a, b])) for a, b in places]
            if all(math.isfinite(one) for *_, one in corners):
                yield corners, sum(one for *_, one in corners) / 4


def _draw_marks(ax: Any, data: Contours, place: int, height: Any, scale: Any) -> None:
    """Draw the points at their own values, their words and the lines through them."""
    there = [
        one.value is not None and math.isfinite(one.value) and one.panel in (None, place) and is_inside(data, one)
        for one in data.marks
    ]
    for line in data.lines:
        on = [data.marks[one] for one in line if there[one]]
        ax.plot(*zip(*((one.x, one.y, float(height(one.value))) for one in on), strict=True), color=_STROKE, zorder=3)
    for one, shown in zip(data.marks, there, strict=True):
        if not shown:
            continue
        at = (one.x, one.y, float(height(one.value)))
        color = scale.to_rgba(min(max(one.value or 0.0, scale.norm.vmin), scale.norm.vmax))
        ax.plot(
            *([part] for part in at),
            "o",
            color=color,
            markeredgecolor=_STROKE,
            markersize=mark_size(data, one),
            zorder=4,
        )
        if one.words:
            ax.text(*at, f"  {printable(one.words)}", fontsize=7.0, zorder=5, bbox=_PLATE)


def is_inside(data: Contours, mark: Any) -> bool:
    """Return True if a point lies above or below the part of the plane that is drawn."""
    sides = [[one for one in axis if one is not None] for axis in (data.columns, data.rows)]
    return all(min(side) <= at <= max(side) for side, at in zip(sides, (mark.x, mark.y), strict=True))


def _dress(ax: Any, data: Contours, place: int, axes: tuple[Any, Any], heights: list[Any]) -> None:
    """Set labels, limits that all surfaces share, and true proportions of the plane."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    (x, y), alone = axes, len(data.panels) == 1
    long = max(x[-1] - x[0], y[-1] - y[0])
    ax.set_box_aspect([max((one[-1] - one[0]) / long, _NARROWEST) for one in (x, y)] + [_SHARE], zoom=_ZOOM)
    ax.view_init(**_VIEW)
    there = np.concatenate([one.ravel() for one in heights])
    there = there[np.isfinite(there)]
    if len(there) and there.max() > there.min():
        ax.set_zlim(min(there.min(), ax.get_zlim()[0]), max(there.max(), ax.get_zlim()[1]))
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(_TICKS if alone else 2))
        ax.tick_params(axis=axis.axis_name, labelsize=7.0 if alone else 6.0, pad=0.0 if alone else -3.0)
    if has_logarithmic_height(data):
        ax.zaxis.set_major_formatter(FuncFormatter(lambda power, _: f"{10**power:.2g}"))
    if not alone:
        ax.set_title(f"plane {place + 1}")
        return
    ax.set_xlabel(axis_label(data.x), fontsize=7.5)
    ax.set_ylabel(axis_label(data.y), fontsize=7.5)
    ax.set_zlabel(
        f"{data.color.label}, logarithmic" if has_logarithmic_height(data) else data.color.label, fontsize=7.5
    )
