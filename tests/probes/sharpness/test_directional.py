from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from helpers import Vector, gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.directional import directional_sharpness


def quadratic(A: Tensor, theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda m, _: m.theta @ A @ m.theta / 2, [torch.zeros(1)])


def network(counts: tuple[int, ...] = (9, 4)) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in counts])


@pytest.mark.parametrize("eta", [0.1, 0.5, 0.9])
def test_gradient_descent_along_an_eigenvector_has_edge_ratio_half_eta_lambda(eta: float) -> None:
    objective = quadratic(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)), torch.tensor([2.0, 0.0]).double())
    found = directional_sharpness(objective, -eta * objective.gradient())
    assert found.edge_ratio.value == pytest.approx(eta * 4 / 2, rel=1e-14)
    assert found.normalized.value == pytest.approx(4, rel=1e-14)
    assert found.slope.value == pytest.approx(-eta * 64, rel=1e-14)
    assert found.curvature.value == pytest.approx(4 * (eta * 8) ** 2, rel=1e-14)
    assert found.edge_ratio.stderr == 0
    for estimate in (found.slope, found.curvature, found.normalized, found.edge_ratio):  # rounding, and no more
        assert 0 < estimate.high - estimate.low < 1e-12 * abs(estimate.value)
    assert found.edge_ratio.bound == "exact"


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_it_is_the_quadratic_form_of_gradient_and_hessian(seed: int) -> None:
    objective = network()
    D = gaussian(objective.size, seed=seed)
    found = directional_sharpness(objective, D)
    curvature = float(D @ (hessian(objective) @ D))
    slope = float(D @ objective.gradient())
    assert found.curvature.value == pytest.approx(curvature, rel=1e-10, abs=1e-12)
    assert found.slope.value == pytest.approx(slope, rel=1e-10, abs=1e-12)
    assert found.normalized.value == pytest.approx(curvature / float(D @ D), rel=1e-10, abs=1e-12)
    if slope < 0:
        assert found.edge_ratio.value == pytest.approx(-curvature / (2 * slope), rel=1e-10)


def test_it_predicts_the_change_of_the_loss_to_third_order() -> None:
    objective = network()
    before, theta = objective.value(), objective.parameters()
    errors = []
    for scale in (1e-2, 5e-3):
        D = -scale * objective.gradient() / objective.gradient().norm()
        found = directional_sharpness(objective, D)
        with objective.at(theta + D):
            errors.append(objective.value() - before - found.slope.value - found.curvature.value / 2)
    assert errors[1] == pytest.approx(errors[0] / 8, rel=0.05)


def test_at_measures_where_the_step_began() -> None:
    objective = network()
    old = objective.parameters()
    D = -0.5 * objective.gradient()
    expected = directional_sharpness(objective, D)
    with objective.at(old + D):
        found = directional_sharpness(objective, D, at=old)
        assert directional_sharpness(objective, D).slope.value != expected.slope.value
        assert torch.equal(objective.parameters(), old + D)
    assert found.slope.value == expected.slope.value
    assert found.curvature.value == expected.curvature.value


def test_one_pass_over_the_data_is_spent_and_one_in_another_precision() -> None:
    objective = network()
    objective.value()
    forwards: list[int] = []
    objective.model.register_forward_hook(lambda *_: forwards.append(1))
    directional_sharpness(objective, torch.ones(objective.size))
    assert len(forwards) == 2 * len(objective.data.batches)


@pytest.mark.parametrize("scale", [1.0, 5.0, 7.0, 10.0])
def test_the_interval_of_a_well_fitted_float32_classifier_contains_the_float64_value(scale: float) -> None:
    x, w = gaussian(50, 3, dtype=torch.float32), torch.tensor([[1.0, 0.5, -0.2]])
    y = (x @ w.mT > 0).long()[:, 0]
    net = nn.Linear(3, 2, bias=False)
    net.weight.data.copy_(torch.cat([-w, w]) * 2 * scale)
    objective = Objective(net, CrossEntropy(), [(x + (2 * y[:, None] - 1) * w / w.norm() * 0.4, y)])
    D = 0.1 * objective.parameters()
    found, true = directional_sharpness(objective, D), directional_sharpness(objective.in_double(), D)
    for name in ("slope", "curvature", "normalized", "edge_ratio"):
        estimate, truth = getattr(found, name), getattr(true, name).value
        assert estimate.low <= truth <= estimate.high
        assert estimate.converged == (estimate.high - estimate.low <= 0.02 * abs(estimate.value))


def test_steps_uphill_and_no_step_leave_gaps() -> None:
    objective = network()
    uphill = directional_sharpness(objective, objective.gradient())
    assert math.isnan(uphill.edge_ratio.value)
    assert math.isnan(uphill.edge_ratio.stderr)
    assert not uphill.edge_ratio.converged
    assert not math.isnan(uphill.normalized.value)
    still = directional_sharpness(objective, torch.zeros(objective.size))
    assert math.isnan(still.edge_ratio.value)
    assert math.isnan(still.normalized.value)
    assert (still.slope.value, still.curvature.value) == (0.0, 0.0)


def test_a_step_that_does_not_fit_or_is_not_finite_is_told() -> None:
    objective = network()
    with pytest.raises(ProbeError, match=r"vector must have shape \(.+, got \(3,\)"):
        directional_sharpness(objective, torch.ones(3))
    with pytest.raises(ProbeError, match="displacement must be finite"):
        directional_sharpness(objective, torch.full((objective.size,), float("inf")))
