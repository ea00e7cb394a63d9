"""The surface benchmark at a tiny size: all arms see the same loss, and missed aims are printed as missed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from helpers import benchmark
from lossscope.landscape.surfaces.ways import Way


@pytest.fixture(scope="module")
def surface() -> Iterator[Any]:
    yield from benchmark("surface")


@pytest.fixture(scope="module")
def problem(surface: Any) -> Any:
    with torch.random.fork_rng():
        return surface.RECIPES["mlp"].problem(5, 32)


def test_ours_has_the_exact_center_and_one_spread_in_all_ways(surface: Any, problem: Any) -> None:
    planes = [surface.ours(problem, 5, way) for way in (Way(0), Way(1), Way(16))]
    assert all((one.losses[:, 2, 2] == problem.objective().value()).all() for one in planes)
    assert planes[0].losses == pytest.approx(planes[2].losses, rel=1e-5)
    timings = surface.grids(problem, 5, 1)
    assert [one.name for one in timings[:4]] == list(surface.WAYS)
    assert all(one.center == 0 for one in timings[:4])
    assert all(one.cells[0] > 0 for one in timings)


@pytest.mark.parametrize("name", ["loss_landscapes", "loss_landscape_3d"])
def test_other_libraries_evaluate_the_same_loss(surface: Any, problem: Any, name: str) -> None:
    pytest.importorskip(name)
    before = {key: one.clone() for key, one in problem.model.state_dict().items()}
    found = [grid(problem, 5) for key, grid in surface.rivals().items() if key.replace("-", "_").startswith(name)]
    assert found
    for one in found:
        assert one.shape == (5, 5)
        assert np.isfinite(one).all()
        assert abs(one[2, 2] - float(problem.loss().detach())) < 1.0
    assert all(torch.equal(one, before[key]) for key, one in problem.model.state_dict().items())


def test_aims_that_are_missed_say_so(surface: Any, problem: Any, capsys: pytest.CaptureFixture[str]) -> None:
    mine, slow, quick = (surface.Timing(name, [ms, ms]) for name, ms in (("ours", 1.0), ("slow", 6.0), ("quick", 4.0)))
    assert surface.ratio(slow, mine) == 6
    surface.print_grids("mlp", problem, [mine, slow, quick], 5)
    rows = capsys.readouterr().out.splitlines()
    assert rows[-2].endswith("| 6.00 | nan |  | at least 5: met |")
    assert rows[-1].endswith("| 4.00 | nan |  | at least 5: **missed** |")
