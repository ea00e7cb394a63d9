"""Heat maps of the spectral density over the run: one axis and scale, counts, and the runs that have one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import render, sharpness
from lossscope.reports.render.drawing import draw_figure, figure_svg
from lossscope.reports.sharpness.density_map import density_maps

SIZE = 1000
NODES = (-0.02, -0.01, 0.0, 0.01, 0.02)
WEIGHTS = [0.1, 0.1, 0.599, 0.1, 0.001, 0.1]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Run]:
    """Write a run whose only isolated eigenvalue is another one at each step."""

    def run(arm: str, tops: dict[int, float]) -> Run:
        store = RunStore.create(tmp_path / arm, {"arm": arm, "data_hash": "own", "loss_unit": "nats"})
        for step, top in tops.items():
            row = {"nodes": [*NODES, top], "weights": WEIGHTS, "settled": [0.0] * 5 + [1.0], "size": SIZE}
            for probe in (0, 1):
                store.append("densities", {"step": step, "probe": probe, "data_hash": "own", "mode": "eval", **row})
        store.close("finished", "done")
        return Run.open(tmp_path / arm)

    return run


def test_each_column_holds_every_eigenvalue_and_the_isolated_one_moves(written: Callable[..., Run]) -> None:
    (figure,) = density_maps([written("a", {1: 1.0, 5: 4.0, 9: 16.0})])
    rows = figure.panels[0].values
    assert figure.columns == (1.0, 5.0, 9.0)
    for column in range(3):
        # the rest is smoothed beyond the rows
        assert sum(row[column] or 0.0 for row in rows) == pytest.approx(SIZE, rel=0.02)
    tops = [next(place for place, row in enumerate(rows) if row[column] is not None) for column in range(3)]
    assert tops[0] > tops[1] > tops[2]  # the largest eigenvalue is on top
    assert [rows[place][column] for column, place in enumerate(tops)] == pytest.approx([1.0] * 3, abs=0.3)


def test_every_arm_has_a_map_on_the_same_axis_and_scale(written: Callable[..., Run]) -> None:
    one, other = density_maps([written("a", {1: 1.0, 5: 2.0}), written("b", {1: 1.0, 7: 40.0})])
    assert (one.rows, one.color) == (other.rows, other.color)
    assert (one.key, other.key) == ("density_map", "density_map_2")
    assert [one.title.endswith(": a"), other.title.endswith(": b")] == [True, True]


def test_one_density_makes_no_map(written: Callable[..., Run]) -> None:
    assert density_maps([written("a", {1: 1.0})]) == ()


def test_the_colors_are_logarithmic_and_the_report_has_the_map(written: Callable[..., Run]) -> None:
    from matplotlib.colors import LogNorm

    run = written("a", {1: 1.0, 5: 4.0})
    (figure,) = density_maps([run])
    mesh = draw_figure(figure).axes[0].collections[0]
    assert isinstance(mesh.norm, LogNorm)
    assert (mesh.norm.vmin, mesh.norm.vmax) == figure.color.limits
    assert "<image" not in figure_svg(figure)
    text = render(sharpness([run]), "text")
    assert "Spectral density of the Hessian over the run: a" in text
    assert "at step 1;" in text
