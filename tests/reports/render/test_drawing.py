"""Figures: artists and labels, without rendering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lossscope.reports import overview
from lossscope.reports.figure_content import Axis, Cloud, Curve, Curves, Points, Threshold
from lossscope.reports.render.drawing import draw_curve, draw_figure, draw_points, draw_threshold, figure_svg
from lossscope.reports.render.style import PALETTE, hue_color

CURVE = Curve("arm", 0, (1.0, 2.0, 3.0), (1.0, None, 3.0), (0.5, None, 2.0), (1.5, None, 4.0), (0.1, None, 0.2), 3)
FIGURE = Curves("key", "Title", "Caption", Axis("step"), Axis("trace", "nats"), (CURVE,))


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_a_curve_breaks_at_a_gap_and_never_falls_to_zero(ax):
    artists = draw_curve(ax, CURVE)
    np.testing.assert_array_equal(artists.line.get_ydata(), [1, np.nan, 3])
    alone = ax.lines[1]
    np.testing.assert_array_equal(alone.get_ydata(), [1, 3])  # a number between gaps is a dot


def test_a_single_seed_has_no_band_and_an_exact_number_no_whisker(ax):
    artists = draw_curve(ax, replace(CURVE, seeds=1, error=(0.0, None, None)))
    assert artists.band is None
    assert artists.whiskers is None


def test_an_uncertain_number_has_its_whisker(ax):
    whiskers = draw_curve(ax, CURVE).whiskers
    _, _, (bars,) = whiskers.lines
    ends = [segment[:, 1].tolist() for segment in bars.get_segments() if len(segment)]
    assert [0.9, 1.1] in [pytest.approx(pair) for pair in ends]


def test_an_interval_is_drawn_as_it_is_and_a_number_without_one_is_hollow(ax):
    curve = replace(CURVE, x=(1, 5, 20), median=(0.9, 0.5, 0.2), low=(0.8, 0.1, None), high=(0.95, 0.6, None))
    artists = draw_curve(ax, replace(curve, interval=True, error=(None, None, None)), shift=1.1)
    (bars,) = artists.whiskers.lines[2]
    ends = [part.tolist() for part in bars.get_segments()[:2]]
    assert np.allclose(ends, [[[1.1, 0.8], [1.1, 0.95]], [[5.5, 0.1], [5.5, 0.6]]])
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "none"]
    assert [line.get_ydata().tolist() for line in hollow] == [[0.2]]
    assert artists.band is None


def test_points_have_error_bars(ax):
    drawn = draw_points(ax, Points("arm", 1, (0.1, 0.2), (1.0, 2.0), (0.5, 0.5), 1))
    np.testing.assert_array_equal(drawn.lines[0].get_xdata(), [0.1, 0.2])
    assert drawn.lines[0].get_color() == PALETTE[1]


def test_a_threshold_is_a_dashed_line_with_its_formula_in_the_legend(ax):
    line = draw_threshold(ax, Threshold(1.0, "formula = 1"))
    assert set(line.get_ydata()) == {1.0}
    assert line.get_linestyle() == "--"
    figure = draw_figure(replace(FIGURE, thresholds=(Threshold(1.0, "formula = 1"),)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["arm", "formula = 1"]


def test_axes_have_units_and_no_pyplot_is_loaded():
    import sys

    figure = draw_figure(FIGURE)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("step", "trace (nats)")
    assert "matplotlib.pyplot" not in sys.modules


def test_an_arm_without_numbers_is_named_in_the_legend():
    texts = [text.get_text() for text in draw_figure(replace(FIGURE, absent=("base",))).legends[0].get_texts()]
    assert texts == ["arm", "base: not measured"]


@pytest.mark.parametrize("name", ["_hidden", "$x$", "a" * 60, "日本", "\x1b"])
def test_no_name_breaks_a_figure(name):
    svg = figure_svg(replace(FIGURE, curves=(replace(CURVE, name=name),)))
    assert "<text" in svg
    legend = draw_figure(replace(FIGURE, curves=(replace(CURVE, name=name),))).legends[0]
    assert len(legend.get_texts()) == 1
    assert len(legend.get_texts()[0].get_text()) <= 27


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
@pytest.mark.parametrize("kind", ["curves", "cloud", "empty"])
def test_every_scale_can_be_drawn(scale, kind):
    x, y = Axis("step", scale=scale, limits=(1.0, 3.0)), Axis("y", scale="log")
    points = (Points("arm", 0, (1.0, 2.0), (1.0, 2.0), (0.1, None), 1),)
    data = {
        "curves": replace(FIGURE, x=x, y=y),
        "cloud": Cloud("key", "Title", "", x, y, points),
        "empty": replace(FIGURE, x=x, curves=()),
    }[kind]
    assert figure_svg(data).rstrip().endswith("</svg>")


def test_equal_data_gives_equal_drawings(demo_runs):
    first, second = ([figure_svg(figure) for figure in overview(demo_runs).figures[:2]] for _ in range(2))
    assert first == second


def test_the_palette_begins_again_after_its_end():
    assert hue_color(len(PALETTE)) == PALETTE[0]
