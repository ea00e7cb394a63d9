"""Straight paths: a closed form, the barrier of a permuted copy, BatchNorm measured anew, and no path at all."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.surfaces.barrier import paired_error
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
    assert found.grid_error == pytest.approx(0.0, abs=1e-12)
    assert found.distance == pytest.approx(2.0)
    assert found.restated is None


def test_the_grid_error_of_a_barrier_covers_what_the_grid_misses() -> None:
    objective = scalar(lambda w: (w**2 - 1) ** 2)
    for points in (6, 8, 12, 20):  # none has a point at the top
        found = path(objective, at(-1.0), at(1.0), points=points)
        assert found.barrier < 1.0
        assert abs(found.barrier + found.grid_error - 1.0) < 0.2 * (1.0 - found.barrier)


def test_a_bowl_has_no_barrier() -> None:
    found = path(scalar(lambda w: w**2), at(-1.0), at(2.0), points=11)
    assert found.barrier == 0.0


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


def of_samples(targets: Tensor) -> Objective:
    """Return the mean over samples of (w² - 1)² y + 0.1 w y, at its barrier y."""
    net = nn.Linear(1, 1, bias=False).double()
    loss = lambda model, batch: ((model.weight**2 - 1) ** 2 * batch + 0.1 * model.weight * batch).mean()  # noqa: E731
    return Objective(net, loss, [targets[:7], targets[7:]])


def drawn(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, generator=generator, dtype=torch.float64) * 0.5 + 2


@pytest.mark.parametrize("count", [8, 40, 64])
def test_the_sampling_error_of_a_barrier_is_that_of_a_mean(count: int) -> None:
    y = drawn(count)
    found = path(of_samples(y), at(-1.0), at(1.0), points=41)
    assert found.barrier == pytest.approx(float(y.mean()))  # the height of each sample is its y
    assert found.sampling_error == pytest.approx(float(y.std()) / count**0.5, rel=1e-9)
    assert found.parts == count
    assert found.grid_error == pytest.approx(0.0, abs=1e-12)
    assert found.barrier_error == pytest.approx(found.sampling_error)


def test_errors_of_grid_and_samples_add_in_quadrature() -> None:
    found = path(of_samples(drawn(40)), at(-1.0), at(1.0), points=6)
    assert found.grid_error > 0.01
    assert found.barrier_error == pytest.approx((found.grid_error**2 + found.sampling_error**2) ** 0.5)


def test_many_samples_are_taken_in_parts() -> None:
    y = drawn(2000)
    found = path(of_samples(y), at(-1.0), at(1.0), points=5)
    assert found.parts == 64
    assert found.sampling_error == pytest.approx(float(y.std()) / 2000**0.5, rel=0.3)  # known to 9 %


def test_what_all_samples_share_is_no_error() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    loss = lambda model, batch: (100 * batch + (model.weight**2 - 1) ** 2).mean()  # noqa: E731
    found = path(Objective(net, loss, [drawn(30)]), at(-1.0), at(1.0), points=5)
    assert found.barrier == pytest.approx(1.0)
    assert found.sampling_error == pytest.approx(0.0, abs=1e-9)  # the losses themselves spread by 50


def test_the_standard_error_covers_a_mean_of_parts_of_unequal_size() -> None:
    rng = np.random.default_rng(0)
    counts = np.array([8.0] * 20 + [7.0] * 20)
    weights = counts / counts.sum()
    found = []
    for _ in range(2000):
        heights = 2 + rng.standard_normal(40) / np.sqrt(counts)
        found.append(abs(float(np.sum(weights * heights)) - 2) > 2 * paired_error(heights, weights))
    assert 0.04 < np.mean(found) < 0.07  # 5.2 % with 39 degrees of freedom, and three errors of 2000 draws


@pytest.mark.slow
def test_the_sampling_error_covers_the_barrier_on_all_data() -> None:
    found = [path(of_samples(drawn(30, seed)), at(-1.0), at(1.0), points=5) for seed in range(600)]
    missed = np.mean([abs(one.barrier - 2.0) > 2 * one.sampling_error for one in found])
    assert 0.03 < missed < 0.085


def test_the_sampling_error_with_batch_norm_is_taken_with_the_statistics_of_the_point() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    x, y = torch.randn(32, 3), torch.arange(32) % 2
    objective = Objective(net.eval(), CrossEntropy(), [(x, y)])
    first = objective.parameters()
    second = -2 * first
    found = path(objective, first, second, points=5)

    def losses(vector: Tensor) -> Tensor:
        other = copy.deepcopy(net)
        torch.nn.utils.vector_to_parameters(vector, other.parameters())
        other[1].reset_running_stats()
        other[1].momentum = None
        other.train()(x)
        return nn.functional.cross_entropy(other.eval()(x), y, reduction="none").detach().double()

    share = float(found.shares[found.top])
    heights = losses(torch.lerp(first, second, share)) - (1 - share) * losses(first) - share * losses(second)
    assert found.height == pytest.approx(float(heights.mean()), rel=1e-4)
    assert found.sampling_error == pytest.approx(float(heights.std()) / 32**0.5, rel=1e-4)


def test_one_sample_has_no_sampling_error_and_the_reason_is_told() -> None:
    found = path(of_samples(drawn(8)).batch(1), at(-1.0), at(1.0), points=5)
    assert math.isnan(found.sampling_error)
    assert math.isnan(found.barrier_error)
    assert found.barrier > 0
    (reason,) = found.missing.values()
    assert reason == "an error over samples needs at least 8 of them, got 1: give the loss more data"


def test_a_loss_that_is_no_mean_over_samples_has_no_sampling_error() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    loss = lambda model, batch: (model.weight**2 - 1).square().sum() * batch.std()  # noqa: E731
    found = path(Objective(net, loss, [drawn(30)], additive=False), at(-1.0), at(1.0), points=5)
    assert "sampling error of the barrier" in found.missing
    assert found.barrier > 0
