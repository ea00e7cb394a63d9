"""The figure of noise curves: the last curve of a run with its intervals, and the range over seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import flatness
from lossscope.reports.flatness.noise_curve import noise_curve_figure
from lossscope.reports.render.drawing import draw_figure

X = [0.01, 0.1, 1.0]


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Run]:
    def run(name: str, *curves: list[float], arm: str = "a", seed: int = 0) -> Run:
        store = RunStore.create(tmp_path / name, {"arm": arm, "seeds": {"init": seed}, "loss_unit": "nats"})
        for step, y in enumerate(curves):
            ends = {"low": [min(0.5 * one, 2 * one) for one in y], "high": [max(0.5 * one, 2 * one) for one in y]}
            store.append("curves", {"step": step, "measure": "noise_rise", "x": X[: len(y)], "y": y, **ends})
        store.close("finished", "done")
        return Run.open(tmp_path / name)

    return run


def test_one_run_has_its_last_curve_with_its_intervals(written: Callable[..., Run]) -> None:
    (figure,) = noise_curve_figure([written("one", [9.0, 9.0, 9.0], [0.02, 0.2, 2.0])])
    (curve,) = figure.curves
    assert (curve.x, curve.median) == (tuple(X), (0.02, 0.2, 2.0))
    assert (curve.low, curve.high, curve.interval) == ((0.01, 0.1, 1.0), (0.04, 0.4, 4.0), True)
    assert figure.summary == (
        "a: 0.020 [0.010, 0.040] at σ 0.010, 0.20 [0.10, 0.40] at σ 0.10, 2.0 [1.0, 4.0] at σ 1.0",
    )
    assert draw_figure(figure).axes[0].get_xscale() == "log"


def test_several_seeds_have_their_median_and_range(written: Callable[..., Run]) -> None:
    runs = [written(f"s{k}", [0.1 * k, k, 10.0 * k], seed=k) for k in (1, 2, 5)]
    (figure,) = noise_curve_figure([*runs, written("none", arm="b")])
    (curve,) = figure.curves
    assert curve.median == pytest.approx((0.2, 2.0, 20.0))
    assert (curve.low[1], curve.high[1]) == (1.0, 5.0)
    assert figure.absent == ("b",)


def test_noise_that_lowers_the_loss_is_drawn_below_zero(written: Callable[..., Run]) -> None:
    (figure,) = noise_curve_figure([written("one", [-0.01, 0.2, 2.0])])
    assert figure.y.scale == "symlog"
    draw_figure(figure)


def test_runs_without_a_curve_have_no_figure(written: Callable[..., Run]) -> None:
    run = written("one")
    assert noise_curve_figure([run]) == ()
    assert "noise_curve" not in [figure.key for figure in flatness([run]).figures]
