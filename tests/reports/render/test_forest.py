"""Forest plots, vertical marks and falling axes: artists, without rendering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lossscope.reports.figure_content import Axis, Curve, Curves, Forest, ForestRow, Threshold
from lossscope.reports.render.drawing import draw_figure, figure_svg

ROWS = (
    ForestRow("worst, relative", 0.5, 0.4, 0.6, (0.45, 0.5, None, 0.55), "0.50 [0.40, 0.60]"),
    ForestRow("open", None, None, None, (), "open: a pair is missing"),
    ForestRow("raw", 1.4, 1.3, 1.5, (1.4,), "1.40 [1.30, 1.50]", faint=True),
)
FOREST = Forest(
    *("rows", "Title", "Caption", Axis("ratio", scale="log"), ROWS), band=(0.8, 1.25), sides=("flatter", "sharper")
)


def colors_at(ax, place):
    return {line.get_color() for line in ax.lines if set(np.atleast_1d(line.get_ydata())) == {place}}


def test_each_row_has_its_dots_its_interval_its_value_and_its_numbers():
    (ax,) = draw_figure(FOREST).axes
    drawn = [(line.get_xdata(), line.get_ydata()) for line in ax.lines]
    assert any(list(x) == [0.45, 0.5, 0.55] and list(y) == [0, 0, 0] for x, y in drawn)
    assert any(list(x) == [0.4, 0.6] for x, _ in drawn)
    words = [text.get_text() for text in ax.texts]
    assert {"0.50 [0.40, 0.60]", "open: a pair is missing", "1.40 [1.30, 1.50]"} <= set(words)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["worst, relative", "open", "raw"]
    assert ax.yaxis_inverted()


def test_what_does_not_count_is_grey_and_an_open_row_has_no_marks():
    (ax,) = draw_figure(FOREST).axes
    assert colors_at(ax, 0).isdisjoint(colors_at(ax, 2))
    assert not [line for line in ax.lines if 1 in np.atleast_1d(line.get_ydata()) and len(line.get_xdata()) == 2][1:]


def test_the_axis_holds_reference_band_and_every_dot_at_round_ratios():
    (ax,) = draw_figure(FOREST).axes
    low, high = ax.get_xlim()
    assert low < 0.4
    assert high > 1.5
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert {"1/2", "0.8", "1", "1.25"} <= set(ticks)


@pytest.mark.parametrize("scale", ["log", "linear"])
@pytest.mark.parametrize("value", [1e-300, 1e-90, 1e90, 1e300])
def test_numbers_of_any_size_can_be_drawn(scale, value):
    row = ForestRow("far", value, value / 2, value * 1.5, (value, -1.0, 0.0), "far")
    assert figure_svg(replace(FOREST, x=Axis("ratio", scale=scale), rows=(row,))).startswith("<?xml")


def test_a_forest_without_rows_can_be_drawn():
    assert "<svg" in figure_svg(replace(FOREST, rows=(), band=None, sides=None))


def test_a_falling_axis_has_its_largest_value_on_the_left_and_a_mark_is_vertical():
    curve = Curve("arm", 0, (2.0, 0.2, 0.02), (9.0, 5.0, 1.0), (8.0, 4.0, 1.0), (9.5, 6.0, 2.0), (None,) * 3, 3)
    axis = Axis("training loss", scale="log", falling=True)
    data = Curves(
        "key", "Title", "Caption", axis, Axis("trace", scale="log"), (curve,), marks=(Threshold(0.1, "level"),)
    )
    figure = draw_figure(data)
    (ax,) = figure.axes
    assert ax.xaxis_inverted()
    assert any(list(line.get_xdata()) == [0.1, 0.1] for line in ax.lines)
    assert "level" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("narrow", [False, True])
def test_long_names_and_reasons_leave_room_for_the_plot(narrow):
    row = replace(ROWS[0], label="a label that is long " * 9, words="open, for a reason that is long " * 9)
    figure = draw_figure(replace(FOREST, rows=(row,), narrow=narrow))
    figure.canvas.draw()  # warns, and so fails, where the axes have no room
    assert figure.axes[0].get_position().width > 0.1
