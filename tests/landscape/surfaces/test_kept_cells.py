"""Finished lines: a call that was stopped goes on, with the same bits; other pictures are others; several processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lossscope.landscape.errors import RunError
from lossscope.landscape.surfaces import kept_cells, lines as lines_module
from lossscope.landscape.surfaces.fan import fan
from lossscope.landscape.surfaces.lines import CellOptions, FanLines, PlaneLines, evaluated_lines
from lossscope.landscape.surfaces.plane import eigen_plane, random_planes
from lossscope.landscape.surfaces.ways import Way
from lossscope.probes import CrossEntropy, Objective

ALL = slice(None)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kept_cells, "_SECONDS", -1.0)
    return iter(())


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the lengths of the lines that are evaluated."""
    found: list[int] = []
    real = lines_module.line_losses

    def line_losses(objective: Any, base: Any, direction: Any, places: Any, way: Any) -> Any:
        found.append(len(places))
        return real(objective, base, direction, places, way)

    monkeypatch.setattr(lines_module, "line_losses", line_losses)
    return found


def network(seed: int = 0, *, shift: float = 0.0, samples: int = 12) -> Objective:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).eval()
    net[1].running_mean += shift
    return Objective(net, CrossEntropy(), [(torch.randn(samples, 4), torch.arange(samples) % 3)])


def stopped(objective: Objective, lines: Any, folder: Path, after: int, **options: Any) -> None:
    seen = 0

    def stop(count: int) -> None:
        nonlocal seen
        seen += bool(count)
        if seen == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated_lines(objective, lines, CellOptions(folder=folder, **options), stop)


@pytest.mark.parametrize("way", [Way(0), Way(1), Way(3)])
def test_a_call_that_was_stopped_goes_on_with_the_same_bits(way: Way, tmp_path: Path, counted: list[int]) -> None:
    objective = network()
    lines = FanLines(objective.parameters(), 8, 3, np.linspace(0.1, 0.5, 5))
    whole = evaluated_lines(objective, lines, CellOptions(way=way), lambda count: None)
    stopped(objective, lines, tmp_path, 3, way=way)
    assert len(list(tmp_path.iterdir())) == 1
    counted.clear()
    told: list[int] = []
    found = evaluated_lines(objective, lines, CellOptions(folder=tmp_path), told.append)  # in the way of the first call
    assert found.kept == 15
    assert counted.count(5) == 5
    assert sum(told) == 40
    assert found.way == way
    assert (found.losses == whole.losses).all()
    counted.clear()
    assert evaluated_lines(objective, lines, CellOptions(folder=tmp_path), lambda count: None).kept == 40
    assert not counted


def test_lost_losses_are_finished_ones(tmp_path: Path, counted: list[int]) -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    objective = Objective(net, lambda model, x: model(x).log().mean(), [torch.ones(2, 1)])
    lines = PlaneLines(torch.ones(1), (torch.ones(1), torch.ones(1)), np.array([-3.0, 0.0]), np.array([0.0, -5.0]))
    options = CellOptions(folder=tmp_path)
    first = evaluated_lines(objective, lines, options, lambda count: None)
    counted.clear()
    again = evaluated_lines(objective, lines, options, lambda count: None)
    assert not counted
    assert np.array_equal(first.losses, again.losses, equal_nan=True)
    assert np.isnan(again.losses).sum() == 3


def test_another_picture_does_not_take_the_cells_of_this_one(tmp_path: Path) -> None:
    options = CellOptions(folder=tmp_path)
    places = np.linspace(0.1, 0.5, 5)
    names = set()
    first = network()
    for objective, lines in (
        (first, FanLines(first.parameters(), 8, 0, places)),
        (first, FanLines(first.parameters(), 8, 1, places)),
        (first, FanLines(first.parameters(), 8, 0, 2 * places)),
        (network(shift=0.5), FanLines(first.parameters(), 8, 0, places)),  # other buffers
        (network(samples=15), FanLines(first.parameters(), 8, 0, places)),
        (network(1), FanLines(network(1).parameters(), 8, 0, places)),
        (
            Objective(first.model, lambda m, b: 2 * CrossEntropy()(m, b), first.data.batches),
            FanLines(first.parameters(), 8, 0, places),
        ),
    ):
        found = evaluated_lines(objective, lines, options, lambda count: None)
        assert found.kept == 0
        now = {one.name for one in tmp_path.iterdir()}
        assert len(now - names) == 1
        names = now


def test_pictures_of_every_kind_go_on(tmp_path: Path) -> None:
    objective, options = network(), CellOptions(folder=tmp_path)
    for draw, size in (
        (partial(fan, points=3, draws=8, radius=0.2, quadratic=False, sharp=False), 16),
        (partial(random_planes, points=3, planes=2), 18),
        (partial(eigen_plane, points=3, radius=0.5), 9),
    ):
        first, again = (draw(objective, cells=options) for _ in range(2))
        assert (first.kept, again.kept) == (0, size)
        assert (first.losses == again.losses).all()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    objective, options = network(), CellOptions(folder=tmp_path)
    lines = FanLines(objective.parameters(), 2, 0, np.array([0.1, 0.2]))
    evaluated_lines(objective, lines, options, lambda count: None)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"has no cells of a picture .*: remove it"):
        evaluated_lines(objective, lines, options, lambda count: None)


def test_a_picture_that_takes_less_than_two_seconds_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_cells, "_SECONDS", 1e3)
    random_planes(network(), points=3, planes=2, cells=CellOptions(folder=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [Way(1), Way(3)])
def test_the_lines_of_a_worker_are_those_of_one_process(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module.signal, "signal", lambda *given: None)
    monkeypatch.setattr(lines_module, "_worker", None)
    objective = network()
    for lines in (
        FanLines(objective.parameters(), 3, 0, np.linspace(-0.5, 0.5, 5)),
        PlaneLines(
            objective.parameters(),
            (torch.ones(objective.size), torch.ones(objective.size).cumsum(0)),
            np.linspace(-0.5, 0.5, 5),
            np.arange(3.0),
        ),
    ):
        lines_module._begin(network, lines, way, torch.get_num_threads())
        truth = evaluated_lines(objective, lines, CellOptions(way=way), lambda count: None)
        for number in (2, 0, 1):
            found = lines_module._line(number)
            assert found[0] == number
            assert (found[1] == truth.losses[number]).all()


@pytest.mark.slow
def test_several_processes_give_the_numbers_of_one() -> None:
    objective = network()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for way in (Way(0), Way(3)):
            alone = random_planes(objective, points=5, planes=2, cells=CellOptions(way=way))
            options = CellOptions(way=way, jobs=2, remake=network)
            assert (random_planes(objective, points=5, planes=2, cells=options).losses == alone.losses).all()
    finally:
        torch.set_num_threads(threads)
