from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.dynamics.outlier_layer import OutlierLayer, first_outlier_layer
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.step_quality import layer_remainders, step_quality


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in (9, 4)])


def test_each_remainder_is_that_of_a_step_of_one_tensor_alone() -> None:
    objective = network()
    D = gaussian(objective.size) / 5
    found = layer_remainders(objective, D).by_name
    assert tuple(found) == objective.names
    for name, remainder in found.items():
        alone = torch.zeros_like(D)
        where = objective.vector.indices([name])
        alone[where] = D[where]
        assert remainder == pytest.approx(step_quality(objective, alone).first_remainder, rel=1e-9)


def test_on_a_quadratic_it_is_half_the_curvature_of_the_block() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor([2.0]).double())
            self.b = nn.Parameter(torch.tensor([3.0]).double())

    objective = Objective(Two(), lambda m, _: (2 * m.a**2 + 5 * m.a * m.b + 3 * m.b**2).sum(), [torch.zeros(1)])
    found = layer_remainders(objective, torch.tensor([1.0, -2.0])).by_name
    assert found == pytest.approx({"a": 2.0, "b": 12.0})
    whole = step_quality(objective, torch.tensor([1.0, -2.0])).first_remainder
    assert whole == pytest.approx(2 + 12 - 10)  # the cross curvature is in none of them


def test_the_model_is_left_bit_for_bit_and_may_stand_after_the_step() -> None:
    objective = network()
    theta, D = objective.parameters(), gaussian(objective.size, seed=1) / 5
    here = layer_remainders(objective, D)
    assert torch.equal(objective.parameters(), theta)
    with objective.at(theta + D):
        assert layer_remainders(objective, D, at=theta) == here


def series(steps: int = 60) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    sizes = np.array([1e-4, 1e-2, 1.0])
    return np.random.default_rng(0).uniform(-2, 2, (steps, 3)) * sizes


def test_the_first_layer_that_leaves_its_own_usual_size_is_found() -> None:
    remainders = series()
    remainders[40, 0] = 5e-3  # small beside the others, large for itself
    remainders[43, 1] = 5.0
    found = first_outlier_layer(remainders, ["in", "mid", "out"])
    usual = float(np.median(np.abs(remainders[20:40, 0])))
    assert found is not None
    assert (found.layer, found.step) == ("in", 40)
    assert found.ratio == pytest.approx(5e-3 / (10 * usual))
    assert first_outlier_layer(remainders[:40], ["in", "mid", "out"]) is None


def test_of_two_at_one_step_the_farther_one_is_named() -> None:
    remainders = series()
    remainders[40] = [5e-3, 5.0, 1.0]
    found = first_outlier_layer(remainders, ["in", "mid", "out"])
    assert found is not None
    assert (found.layer, found.step) == ("mid", 40)


def test_a_threshold_needs_half_a_window_and_skips_gaps() -> None:
    flat = np.ones((30, 1))
    flat[9] = 100.0
    assert first_outlier_layer(flat, ["w"]) is None
    flat[10] = 100.0
    found = first_outlier_layer(flat, ["w"])
    assert found == OutlierLayer("w", 10, 10.0)
    flat[10], flat[3] = math.nan, math.nan
    flat[11] = 100.0
    assert first_outlier_layer(flat, ["w"]) is None  # nine are known
    assert first_outlier_layer(flat, ["w"], window=18) == OutlierLayer("w", 11, 10.0)
    assert first_outlier_layer(np.full((30, 1), math.nan), ["w"]) is None


def test_a_layer_without_a_usual_size_is_judged_by_the_rounding() -> None:
    zeros = np.zeros((20, 2))
    zeros[15, 1] = 1e-7
    assert first_outlier_layer(zeros, ["a", "b"]) is None
    assert first_outlier_layer(zeros, ["a", "b"], rounding=5e-8) == OutlierLayer("b", 15, pytest.approx(2))
    assert first_outlier_layer(zeros, ["a", "b"], rounding=2e-7) is None


def test_each_step_has_its_own_rounding() -> None:
    remainders = series()
    remainders[40, 0] = 5e-3
    rounding = np.where(np.arange(60) > 40, 1.0, 1e-9)  # the loss has grown since
    assert first_outlier_layer(remainders, ["in", "mid", "out"], rounding=1.0) is None
    found = first_outlier_layer(remainders, ["in", "mid", "out"], rounding=rounding)
    assert found is not None
    assert (found.layer, found.step) == ("in", 40)
    with pytest.raises(ProbeError, match=r"must be one number or have shape \(60,\), got shape \(3,\)"):
        first_outlier_layer(remainders, ["in", "mid", "out"], rounding=[0.0, 1.0, 2.0])
    with pytest.raises(ProbeError, match="rounding must be finite and at least 0 nats, got nan"):
        first_outlier_layer(remainders, ["in", "mid", "out"], rounding=math.nan)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"must have shape \(steps, 3\), one column per layer, got \(4, 2\)"):
        first_outlier_layer(np.ones((4, 2)), ["a", "b", "c"])
    with pytest.raises(ProbeError, match=r"factor must be finite and at least 1, got 0\.5"):
        first_outlier_layer(np.ones((4, 1)), ["a"], factor=0.5)
    with pytest.raises(ProbeError, match="window must be at least 2 steps, got 1"):
        first_outlier_layer(np.ones((4, 1)), ["a"], window=1)
    with pytest.raises(ProbeError, match="rounding must be finite and at least 0 nats, got -1"):
        first_outlier_layer(np.ones((4, 1)), ["a"], rounding=-1.0)
    with pytest.raises(ProbeError, match="displacement must be finite"):
        layer_remainders(network(), torch.full((network().size,), math.inf))
