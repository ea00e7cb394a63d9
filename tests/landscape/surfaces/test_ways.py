"""Losses on lines: all ways give the values of each alone, on the zoo too, and those that do not are left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.surfaces import lines as lines_module, ways as ways_module
from lossscope.landscape.surfaces.lines import CellOptions, FanLines, PlaneLines, evaluated_lines
from lossscope.landscape.surfaces.plane import random_planes
from lossscope.landscape.surfaces.ways import ALONE, Way, agree, chosen_way, line_losses
from lossscope.probes import CrossEntropy, Objective
from zoo.table import MEMBERS

PLACES = np.linspace(-0.3, 0.3, 9)
IN_PLACE = Way(1)


def network(*layers: nn.Module, batches: tuple[int, ...] = (20, 5)) -> Objective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *layers, nn.Linear(8, 3))
    return Objective(net, CrossEntropy(), [(torch.randn(n, 6), torch.arange(n) % 3) for n in batches])


def line(objective: Objective) -> tuple[Tensor, Tensor]:
    theta = objective.parameters()
    return theta, theta * torch.randn(len(theta), generator=torch.Generator().manual_seed(1)).to(theta)


def losses(objective: Objective, way: Way) -> Any:
    return line_losses(objective, *line(objective), PLACES, way)


def test_all_ways_give_the_values_of_each_alone() -> None:
    objective = network()
    theta, direction = line(objective)
    truth = losses(objective, ALONE)
    assert truth[4] == objective.value()
    assert truth[0] == objective.value_at(torch.add(theta, direction, alpha=-0.3))
    assert (losses(objective, IN_PLACE) == truth).all()  # bit for bit
    for block in (2, 4, 9):
        assert losses(objective, Way(block)) == pytest.approx(truth, rel=1e-6)
    double = objective.in_double()
    truth = line_losses(double, theta.double(), direction.double(), PLACES, ALONE)
    found = line_losses(double, theta.double(), direction.double(), PLACES, Way(4))
    assert found == pytest.approx(truth, rel=1e-13)


def _zoo() -> list[Any]:
    names = [name for name in MEMBERS if name not in ("checkpointed_reentrant", "gpt_11m")]
    return [pytest.param(name, marks=[pytest.mark.slow] if MEMBERS[name].slow else []) for name in names]


@pytest.mark.parametrize("name", _zoo())
def test_every_kind_of_model_has_the_same_values_and_is_not_touched(name: str) -> None:
    objective = MEMBERS[name].objective()
    lines = FanLines(objective.parameters(), 2, 0, PLACES)
    before = {key: one.clone() for key, one in objective.model.state_dict().items()}
    truth = evaluated_lines(objective, lines, CellOptions(way=ALONE), lambda count: None)
    for way in (IN_PLACE, Way(4)):
        found = evaluated_lines(objective, lines, CellOptions(way=way), lambda count: None)
        assert all(agree(*pair, objective) for pair in zip(found.losses, truth.losses, strict=True))
        if way == IN_PLACE or found.failed:
            assert np.array_equal(found.losses, truth.losses, equal_nan=True)
    after = objective.model.state_dict()
    assert all(torch.equal(one, after[key]) for key, one in before.items())


class Counting(nn.Module):
    """A layer whose output depends on how often it was called: in a buffer, or in an attribute."""

    def __init__(self, *, buffer: bool) -> None:
        super().__init__()
        self.buffer = buffer
        self.calls = 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.buffer:
            self.count += 1
            return x * self.count
        self.calls += 1
        return x * self.calls


class Misread(torch.autograd.Function):
    """An identity whose rule for `vmap` is wrong."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> Any:
        return x * 1.5, in_dims[0]


class Layer(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_model_that_counts_its_calls_finds_the_same_state_at_each_point() -> None:
    objective = network(Counting(buffer=False))
    assert (losses(objective, IN_PLACE) == losses(objective, ALONE)).all()
    assert objective.model[2].calls == 0
    objective = network(Counting(buffer=True))
    truth = losses(objective, ALONE)
    with pytest.raises(ways_module._UnsuitedError):
        losses(objective, IN_PLACE)
    lines = FanLines(objective.parameters(), 1, 1, PLACES)
    found = evaluated_lines(objective, lines, CellOptions(way=IN_PLACE), lambda count: None)
    assert found.failed
    assert (found.losses[0] == truth).all()
    assert float(objective.model[2].count) == 0


@pytest.mark.parametrize("function", [Misread.apply, lambda x: x * (1.0 if float(x.mean()) < 9 else 2.0)])
def test_a_model_that_vmap_gets_wrong_or_not_at_all_is_evaluated_otherwise(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways_module, "_SLOW", np.inf)
    objective = network(Layer(function))
    truth = losses(objective, ALONE)
    assert not chosen_way(objective, *line(objective), PLACES, 2**28).block > 1
    lines = FanLines(objective.parameters(), 3, 1, PLACES)
    found = evaluated_lines(objective, lines, CellOptions(way=Way(4)), lambda count: None)
    assert (found.losses[0] == truth).all()
    assert found.evaluated == "blocks of up to 4 by vmap, and each alone where that failed"


def test_the_fastest_way_is_taken_and_blocks_keep_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = network()
    one = ways_module._point_bytes(objective)
    assert one > 4 * objective.size
    theta, direction = line(objective)
    speeds = {ALONE: 1.0, IN_PLACE: 0.9, Way(2): 0.8, Way(9): 0.5, Way(5): 0.1}
    tried: list[Way] = []

    def times(ways: list[Way], run: Any) -> dict[Way, float]:
        tried[:] = ways
        return {way: speeds[way] for way in ways}

    monkeypatch.setattr(ways_module, "_SLOW", np.inf)
    monkeypatch.setattr(ways_module, "_times", times)
    assert chosen_way(objective, theta, direction, PLACES, 100 * one) == Way(9)
    assert tried == [ALONE, IN_PLACE, Way(2), Way(9)]
    assert chosen_way(objective, theta, direction, PLACES, 5 * one + 1) == Way(5)
    assert chosen_way(objective, theta, direction, PLACES, one) == IN_PLACE
    monkeypatch.setattr(ways_module, "_SLOW", 0.0)  # a loss that takes long: nothing is tried
    tried.clear()
    assert chosen_way(objective, theta, direction, PLACES, 100 * one) == ALONE
    assert not tried


def test_a_picture_has_the_same_values_in_blocks_and_its_exact_center(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = network()
    truth = random_planes(objective, points=11, planes=2, cells=CellOptions(way=ALONE))
    found = random_planes(objective, points=11, planes=2, cells=CellOptions(way=Way(6)))
    assert found.losses == pytest.approx(truth.losses, rel=1e-5)
    assert (found.losses[:, 5, 5] == objective.value()).all()
    assert (found.evaluated, truth.evaluated) == ("blocks of up to 6 by vmap", "each alone")
    calls: list[Any] = []
    monkeypatch.setattr(lines_module, "chosen_way", lambda *given: calls.append(given) or IN_PLACE)
    assert random_planes(objective, points=15, planes=2).evaluated == "one after another in place"
    assert len(calls) == 1  # for all planes
    assert random_planes(objective, points=5, planes=2).evaluated == "each alone"  # too few to measure
    assert len(calls) == 1


def test_losses_that_are_not_finite_are_missing_in_every_way() -> None:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    objective = Objective(net, lambda model, x: model(x).log().mean(), [torch.ones(2, 1)])
    ones = torch.ones(1)
    for way in (ALONE, IN_PLACE, Way(2)):
        found = line_losses(objective, ones, ones, np.array([-3.0, -1.0, 0.0, 1.0]), way)
        assert np.isnan(found).tolist() == [True, True, False, False]


@pytest.mark.parametrize("way", [ALONE, IN_PLACE, Way(3)])
def test_weights_are_as_before_after_an_exception(way: Way) -> None:
    calls = 0

    def broken(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise KeyboardInterrupt
        return x

    objective = network(Layer(broken), batches=(4,))
    before = {key: one.clone() for key, one in objective.model.state_dict().items()}
    pointers = [p.data_ptr() for p in objective.model.parameters()]
    lines = PlaneLines(*(line(objective)[0],), (line(objective)[1], torch.ones(objective.size)), PLACES, PLACES)
    with pytest.raises(KeyboardInterrupt):
        evaluated_lines(objective, lines, CellOptions(way=way), lambda count: None)
    assert all(torch.equal(one, before[key]) for key, one in objective.model.state_dict().items())
    assert [p.data_ptr() for p in objective.model.parameters()] == pointers
