"""Axes: readable tick labels for any range."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from lossscope.reports.figure_content import Axis, Threshold
from lossscope.reports.render.axes import dress
from lossscope.reports.shared.figures import edge_figure


def numbers(ax) -> list[str]:
    """Return the visible labels of the y axis."""
    low, high = ax.get_ylim()
    ax.figure.canvas.draw()
    return [label.get_text() for label in ax.get_yticklabels() if low <= label.get_position()[1] <= high]


def drawn(values, scale="log"):
    ax = Figure().subplots()
    ax.plot(range(len(values)), values)
    dress(ax, Axis("step"), Axis("λ_max", "nats", scale))
    return ax


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.3, 9.0, ["0.5", "1", "2", "5", "10"]),
        (1.1, 30.0, ["1", "2", "5", "10", "20"]),
        (12.0, 300.0, ["20", "50", "100", "200"]),
        (0.3, 90.0, ["1", "10", "100"]),
    ],
)
def test_a_logarithmic_axis_has_several_numbers_and_unlabeled_ticks_between(low, high, shown):
    ax = drawn(np.geomspace(low, high, 8))
    assert numbers(ax) == shown
    inside = [tick for tick in ax.yaxis.get_minorticklocs() if low <= tick <= high]
    assert len(inside) > len(shown)
    assert not any(label.get_text() for label in ax.get_yticklabels(minor=True))


def changed(*values):
    """Return a row transform that sets the directional edge ratios after the first evaluation, in order."""
    given = iter(values)

    def rows(table, row):
        return {**row, "value": next(given)} if row.get("measure") == "directional_edge_ratio" else row

    return rows


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.1, 0.2, 10.5, 0.3, 0.4, 0.2, 0.3], "log"),
        ([0.1, -0.2, 10.5, 0.3, 0.4, -0.1, 0.3], "symlog"),
        ([0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 1.5], "linear"),
        ([-0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 1.5], "linear"),
        ([0.02, 0.02, 0.03, 0.02, 0.02, 0.02, 0.02], "log"),  # its line at 1 lies far above
    ],
)
def test_one_large_edge_ratio_does_not_flatten_the_others(write_run, values, scale):
    figure = edge_figure([write_run("a", rows=changed(*values))])
    assert figure.y.scale == scale
    assert figure.thresholds == (Threshold(1.0, "η dᵀHd / (2 gᵀd) = 1"),)


def test_an_axis_through_zero_is_numbered_on_both_sides():
    ax = Figure().subplots()
    ax.plot(range(4), [0.1, -0.2, 10.5, 0.3])
    dress(ax, Axis("step"), Axis("directional edge ratio", scale="symlog", linear_to=0.1))
    assert numbers(ax) == ["\N{MINUS SIGN}0.1", "0", "0.1", "1", "10"]
