"""Straight paths: a closed form, the barrier of a permuted copy, BatchNorm measured anew, and no path at all."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.path import path
from lossscope.probes import CrossEntropy, Objective


def scalar(function: object) -> Objective:
    net = nn.Linear(1, 1, bias=False).double()
    loss = lambda model, x: function(model.weight).sum() + 0 * model(x).sum()  # noqa: E731
    return Objective(net, loss, [torch.ones(1, 1, dtype=torch.float64)])


def at(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def test_a_double_well_has_its_barrier() -> None:
    objective = scalar(lambda w: (w**2 - 1) ** 2 + 0.1 * w)
    found = path(objective, at(-1.0), at(1.0), points=41)
    assert found.losses == pytest.approx((np.linspace(-1, 1, 41) ** 2 - 1) ** 2 + 0.1 * np.linspace(-1, 1, 41))
    assert found.barrier == pytest.approx(1.0)
    assert found.barrier_error == pytest.approx(0.0, abs=1e-12)
    assert found.distance == pytest.approx(2.0)
    assert found.restated is None


def test_the_error_of_a_barrier_covers_what_the_grid_misses() -> None:
    objective = scalar(lambda w: (w**2 - 1) ** 2)
    for points in (6, 8, 12, 20):  # none has a point at the top
        found = path(objective, at(-1.0), at(1.0), points=points)
        assert found.barrier < 1.0
        assert abs(found.barrier + found.barrier_error - 1.0) < 0.2 * (1.0 - found.barrier)


def test_a_bowl_has_no_barrier() -> None:
    found = path(scalar(lambda w: w**2), at(-1.0), at(2.0), points=11)
    assert found.barrier == 0.0


def test_a_copy_with_permuted_neurons_is_behind_a_barrier() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(60, 4)
    objective = Objective(net, CrossEntropy(), [(x, x[:, :3].argmax(1))])
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
    other, order = copy.deepcopy(net), torch.randperm(16)
    with torch.no_grad():
        for one in (other[0].weight, other[0].bias):
            one.copy_(one[order])
        other[2].weight.copy_(other[2].weight[:, order])
    first, second = (objective.with_model(one).parameters() for one in (net, other))
    found = path(objective, first, second)
    assert found.losses[0] == pytest.approx(found.losses[-1], rel=1e-4)  # the same function
    assert found.losses[0] == objective.value()
    assert found.barrier > 5 * found.losses[0]
    assert torch.equal(objective.parameters(), first)


def test_statistics_of_batch_norm_are_measured_anew() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    x, y = torch.randn(32, 3), torch.arange(32) % 2
    objective = Objective(net.eval(), CrossEntropy(), [(x, y)])
    first = objective.parameters()
    second = 3 * first
    before = {name: one.clone() for name, one in net.state_dict().items()}
    found = path(objective, first, second, points=5)
    assert found.restated is not None
    for share, loss in zip(found.shares, found.restated, strict=True):
        other = copy.deepcopy(net)
        torch.nn.utils.vector_to_parameters(first + float(share) * (second - first), other.parameters())
        other[1].reset_running_stats()
        other[1].momentum = None
        other.train()(x)
        truth = nn.functional.cross_entropy(other.eval()(x), y)
        assert loss == pytest.approx(float(truth.detach()), rel=1e-5)
    assert np.abs(found.restated - found.losses).max() > 1e-3
    assert all(torch.equal(one, before[name]) for name, one in net.state_dict().items())


def test_a_lost_loss_leaves_no_barrier() -> None:
    found = path(scalar(lambda w: torch.log(w)), at(1.0), at(-1.0), points=5)
    assert math.isnan(found.barrier)
    assert math.isnan(found.barrier_error)
    assert np.isnan(found.losses).tolist() == [False, False, True, True, True]


def test_what_is_no_path_is_refused() -> None:
    objective = scalar(lambda w: w**2)
    with pytest.raises(ConfigError, match="both ends of the path are the same"):
        path(objective, at(1.0), at(1.0))
    with pytest.raises(ConfigError, match="points must be at least 3, got 2"):
        path(objective, at(1.0), at(2.0), points=2)
