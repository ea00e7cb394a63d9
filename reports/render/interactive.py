"""Page with a surface to turn, drawn by plotly: one file without any outside request. The extra `interactive`."""

from __future__ import annotations

import html
import math
from typing import Any, Final

import numpy as np

from lossscope.landscape.errors import LandscapeError
from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.figure_content import ContourMark, Contours, FigureData
from lossscope.reports.render.axes import axis_label
from lossscope.reports.render.contours import COLORS, contour_levels, mark_size, panel_values
from lossscope.reports.render.raised import has_logarithmic_height, is_inside

__all__ = ["interactive_page", "require_plotly"]

_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_TICKS: Final = 6  # of the scale of colors
_STROKE: Final = "#c2410c"  # of lines and rims: no color of the scale
_EYE: Final = (-1.0, -1.25, 0.95)  # direction of the eye
_NEAR, _FAR = 1.15, 1.9  # of the eye, from one surface and from several
_GAP: Final = 0.02  # between surfaces, of the width
_BRACKETS: Final = str.maketrans("<>", "‹›")  # plotly takes what stands between brackets for markup
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title} · lossscope</title>
<link rel="icon" href="data:,">
<style>
body {{ margin: 1rem 1.5rem; font-family: system-ui, sans-serif; color: #22262b; background: white; }}
h1 {{ font-size: 1.25rem; margin: 0 0 .3rem; }}
p {{ margin: 0 0 .2rem; max-width: 66rem; color: #5b626a; font-size: .9rem; }}
#surface {{ height: 75vh; min-height: 24rem; }}
</style>
<script>{library}</script>
</head>
<body>
<main>
<h1>{title}</h1>
{limits}
{drawing}
<p>{caption}</p>
</main>
</body>
</html>
"""


def require_plotly() -> None:
    """Raise unless plotly is installed.

    Raises:
        LandscapeError: It is not.
    """
    try:
        import plotly.graph_objects  # noqa: F401
    except ImportError as error:
        raise LandscapeError(
            "the interactive page needs plotly: install it with pip install 'lossscope[interactive]'"
        ) from error


def interactive_page(data: FigureData) -> str:
    """Return a page that shows planes as surfaces that can be turned.

    Args:
        data: A figure of planes.

    Raises:
        LandscapeError: plotly is not installed, or the figure has no planes.
    """
    require_plotly()
    if not isinstance(data, Contours):
        raise LandscapeError(f"{data.title} has no planes: only planes have a page with a surface to turn")
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    drawing = to_html(
        _drawn(data),
        config={"displaylogo": False, "responsive": True},
        include_plotlyjs=False,
        full_html=False,
        div_id="surface",
        default_height="75vh",
    )
    limits = "\n".join(f"<p>{html.escape(printable(line))}</p>" for line in data.limits)
    words = {"title": html.escape(printable(data.title)), "caption": html.escape(printable(data.caption))}
    return _PAGE.format(policy=_POLICY, library=get_plotlyjs(), limits=limits, drawing=drawing, **words)


def _drawn(data: Contours) -> Any:
    """Return the figure of plotly: a scene for each plane, one scale of colors."""
    from plotly.graph_objects import Figure

    values = panel_values(data)
    levels = contour_levels(values)
    parts: list[Any] = []
    scenes: dict[str, Any] = {}
    count = len(values)
    for place, one in enumerate(values):
        scene = f"scene{place + 1}" if place else "scene"
        parts += [_surface(data, one, levels, scene), *_lines(data, place, scene), _points(data, place, levels, scene)]
        side = [place / count + _GAP * (place > 0), (place + 1) / count]
        scenes[scene] = {**_scene(data), "domain": {"x": side, "y": [0, 1]}}
    shown = np.unique(np.linspace(0, len(levels) - 1, _TICKS).astype(int))
    scale = {
        "colorscale": COLORS.capitalize(),
        "cmin": 0,
        "cmax": len(levels) - 1,
        "colorbar": {
            "title": {"text": _safe(axis_label(data.color))},
            "tickvals": shown.tolist(),
            "ticktext": [f"{levels[one]:.3g}" for one in shown],
        },
    }
    margin = {"l": 0, "r": 0, "t": 10, "b": 0}
    return Figure(parts, {**scenes, "coloraxis": scale, "showlegend": False, "margin": margin, "template": "none"})


def _surface(data: Contours, values: Any, levels: Any, scene: str) -> Any:
    """Return a plane as a surface, with holes where values are missing."""
    from plotly.graph_objects import Surface

    return Surface(
        x=data.columns,
        y=data.rows,
        z=_holes(_height(data, values)),
        surfacecolor=_holes(_shade(values, levels)),
        customdata=_holes(values),
        coloraxis="coloraxis",
        connectgaps=False,
        contours={"z": {"show": True, "color": "white", "width": 1}},
        lighting={"ambient": 1.0, "diffuse": 0.0, "specular": 0.0},  # colors are values, not shadows
        hovertemplate="%{x:.3g}, %{y:.3g}: %{customdata:.4g}<extra></extra>",
        scene=scene,
    )


def _points(data: Contours, place: int, levels: Any, scene: str) -> Any:
    """Return the points of a plane at their own values."""
    from plotly.graph_objects import Scatter3d

    there = [one for one in data.marks if _is_shown(data, one, place)]
    return Scatter3d(
        x=[one.x for one in there],
        y=[one.y for one in there],
        z=[_height(data, one.value) for one in there],
        mode="markers+text",
        text=[_safe(one.words) for one in there],
        hovertext=[_safe(f"{one.name}, {one.distance:.3g} from the plane") for one in there],
        hoverinfo="text",
        marker={
            "color": [_shade(one.value, levels) for one in there],
            "coloraxis": "coloraxis",
            "size": [mark_size(data, one) for one in there],
            "line": {"color": _STROKE, "width": 1},
        },
        textfont={"color": _STROKE},
        scene=scene,
    )


def _lines(data: Contours, place: int, scene: str) -> list[Any]:
    """Return the lines through points."""
    from plotly.graph_objects import Scatter3d

    every = [[data.marks[one] for one in line if _is_shown(data, data.marks[one], place)] for line in data.lines]
    return [
        Scatter3d(
            x=[one.x for one in line],
            y=[one.y for one in line],
            z=[_height(data, one.value) for one in line],
            mode="lines",
            line={"color": _STROKE, "width": 3},
            hoverinfo="skip",
            scene=scene,
        )
        for line in every
        if line
    ]


def _scene(data: Contours) -> dict[str, Any]:
    """Return the axes of a scene, in true proportions of the plane."""
    sides = [max(axis) - min(axis) for axis in (_there(data.columns), _there(data.rows))]
    height: dict[str, Any] = {"title": {"text": _safe(axis_label(data.color))}}
    if has_logarithmic_height(data):
        there = np.concatenate([one.ravel() for one in panel_values(data)])
        powers = np.log10(there[np.isfinite(there)])
        ticks = np.linspace(powers.min(), powers.max(), _TICKS)
        height = {
            "title": {"text": _safe(f"{axis_label(data.color)}, logarithmic")},
            "tickvals": ticks.tolist(),
            "ticktext": [f"{10**one:.2g}" for one in ticks],
        }
    far = _NEAR if len(data.panels) == 1 else _FAR
    return {
        "xaxis": {"title": {"text": _safe(axis_label(data.x))}},
        "yaxis": {"title": {"text": _safe(axis_label(data.y))}},
        "zaxis": height,
        "aspectmode": "manual",
        "camera": {"eye": dict(zip("xyz", (far * one for one in _EYE), strict=True))},
        "aspectratio": {"x": max(sides[0] / max(sides), 0.4), "y": max(sides[1] / max(sides), 0.4), "z": 0.7},
    }


def _height(data: Contours, values: Any) -> Any:
    """Return values as heights."""
    return np.log10(values) if has_logarithmic_height(data) else values


def _shade(values: Any, levels: Any) -> Any:
    """Return values as places on the scale of colors, which are those of contours."""
    return np.interp(values, levels, np.arange(len(levels)), left=0, right=len(levels) - 1)


def _holes(values: Any) -> list[list[float | None]]:
    """Return values with None where they are missing."""
    return [[float(one) if math.isfinite(one) else None for one in row] for row in np.asarray(values)]


def _is_shown(data: Contours, mark: ContourMark, place: int) -> bool:
    """Return True for a point of a plane within its edges that has a value."""
    return (
        mark.panel in (None, place) and is_inside(data, mark) and mark.value is not None and math.isfinite(mark.value)
    )


def _there(axis: tuple[float | None, ...]) -> list[float]:
    return [one for one in axis if one is not None]


def _safe(words: str) -> str:
    """Return words without characters that plotly would read as markup."""
    return printable(words).translate(_BRACKETS)
