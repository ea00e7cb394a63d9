"""Critical learning rate: closed forms, brackets that hold, invariance, convergence, and lines without a crossing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.optimize import brentq
from torch import Tensor, nn

from helpers import Vector, gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.critical import critical_learning_rate, nonquadraticity
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.statistics.estimate import exact_estimate

ONE = torch.ones(1, dtype=torch.float64)


def line(change: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Objective:
    """Return a loss of one parameter, at 0; its step is 1."""
    return Objective(Vector(torch.zeros(1, dtype=dtype)), lambda m, x: change(m.theta[0]) * x[0], [torch.ones(1)])


def quadratic(A: Tensor, theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda m, _: m.theta @ A.to(m.theta.dtype) @ m.theta / 2, [torch.zeros(1)])


def network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in (9, 14)])


@given(seed=st.integers(0, 10**6), lr=st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_on_a_quadratic_it_is_twice_slope_over_curvature_along_any_update(seed: int, lr: float) -> None:
    A, theta, noise = gaussian(5, 5, seed=seed), gaussian(5, seed=seed + 1), gaussian(5, seed=seed + 2)
    A = A @ A.mT + 0.1 * torch.eye(5)
    objective = quadratic(A, theta)
    g = A @ theta
    u = g + 0.3 * noise * g.norm() / noise.norm()  # a descent direction
    right = 2 * float(g @ u) / float(u @ A @ u)
    found = critical_learning_rate(objective, -lr * u, lr)
    assert found.rate.value == pytest.approx(right, rel=1e-6)
    assert found.rate.low < right < found.rate.high
    assert 1 - found.rate.low / found.rate.high <= 1 / 16
    assert found.rate.converged
    assert found.multiple.value == pytest.approx(right / lr, rel=1e-6)
    assert found.sharpness.value == pytest.approx(2 / right, rel=1e-6)
    assert found.sharpness.low == pytest.approx(2 / found.rate.high, rel=1e-14)
    along = directional_sharpness(objective, -lr * u)
    assert found.sharpness.value == pytest.approx(along.sharpness(lr).value, rel=1e-6)
    ratio = nonquadraticity(found.multiple, along.edge_ratio)
    assert ratio.low < 1 < ratio.high
    assert ratio.value == pytest.approx(1, rel=1e-6)
    assert found.losses <= 5 + abs(math.log2(right / lr))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_descent_on_the_known_quadratic(dtype: torch.dtype) -> None:
    objective = quadratic(torch.diag(torch.tensor([9.0, 4.0, 1.0])), torch.ones(3, dtype=dtype))
    g = torch.tensor([9.0, 4.0, 1.0])
    right = 2 * float(g @ g) / float(g @ torch.tensor([81.0, 16.0, 1.0]))
    assert right == pytest.approx(0.24685, abs=1e-5)
    found = critical_learning_rate(objective, -0.1 * g, 0.1)
    assert found.rate.low < right < found.rate.high
    assert found.rate.bound == "bracket"
    assert found.losses <= 6


def test_gradient_descent_just_below_it_lowers_the_loss_and_just_above_it_raises_it() -> None:
    """The optimizer of torch itself, on a network."""
    objective = network()
    found = critical_learning_rate(objective, -0.1 * objective.gradient(), 0.1, rel=1e-3)
    losses = []
    for lr in (found.rate.low, found.rate.high):
        other = objective.with_model(copy.deepcopy(objective.model))
        sgd = torch.optim.SGD(other.model.parameters(), lr)
        gradient = other.vector.split(other.gradient())
        for p, g in zip(other.model.parameters(), gradient, strict=True):
            p.grad = g
        sgd.step()
        losses.append(other.value())
    assert losses[0] < objective.value() < losses[1]
    assert 1 - found.rate.low / found.rate.high <= 1e-3


def test_the_crossing_of_a_network_is_that_of_an_independent_root_finder() -> None:
    objective = network()
    D, theta, before = -objective.gradient(), objective.parameters(), objective.value()

    def change(s: float) -> float:
        with objective.at(theta + s * D):
            return objective.value() - before

    found = critical_learning_rate(objective, D, 1.0, rel=1e-5)
    right = brentq(change, 0.5 * found.multiple.low, 2 * found.multiple.high, xtol=1e-12)
    assert found.multiple.low < right < found.multiple.high
    assert found.multiple.value == pytest.approx(right, rel=1e-5)
    along = directional_sharpness(objective, D)
    ratio = nonquadraticity(found.multiple, along.edge_ratio)
    assert ratio.value == pytest.approx(1 / (right * along.edge_ratio.value), rel=1e-5)
    assert abs(ratio.value - 1) > 0.01  # the line is not quadratic


def test_every_bracket_holds_and_more_losses_only_narrow_it() -> None:
    objective = line(lambda t: -t + 0.3 * t**2 + 0.2 * t**3 + 0.05 * t**4 + 5)
    right = brentq(lambda t: -1 + 0.3 * t + 0.2 * t**2 + 0.05 * t**3, 0.1, 10, xtol=1e-14)
    brackets = [
        critical_learning_rate(objective, 0.01 * ONE, 0.01, rel=1e-11, max_losses=budget).rate
        for budget in range(11, 40, 2)
    ]
    assert all(one.low <= right <= one.high for one in brackets)
    assert all(late.low >= early.low and late.high <= early.high for early, late in pairwise(brackets))
    assert 1 - brackets[-1].low / brackets[-1].high <= 1e-11
    assert brackets[-1].converged
    assert not brackets[0].converged
    assert brackets[0].cause == ""  # more losses would narrow it


@pytest.mark.parametrize("seed", range(5))
def test_the_bracket_of_a_float32_loss_contains_the_crossing_of_the_exact_one(seed: int) -> None:
    A, theta = gaussian(20, 20, seed=seed).float(), gaussian(20, seed=seed + 1).float()
    A = A @ A.mT
    u = (A @ theta).float()
    model = Objective(
        Vector(theta), lambda m, x: x[0] + m.theta @ A.to(m.theta.dtype) @ m.theta / 2, [torch.full((1,), 1e4)]
    )
    right = 2 * float(u.double() @ A.double() @ theta.double()) / float(u.double() @ A.double() @ u.double())
    found = critical_learning_rate(model, -1e-4 * u, 1e-4, rel=1e-9)
    D = (-1e-4 * u).double()
    exact = -2 * float(D @ A.double() @ theta.double()) / float(D @ A.double() @ D)
    assert exact * 1e-4 == pytest.approx(right, rel=1e-5)
    assert found.multiple.low < exact < found.multiple.high
    assert not found.rate.converged
    assert "within its rounding" in found.rate.cause


@pytest.mark.parametrize("root", [1.03, 1.41, 2.2, 3.7])
def test_rounding_that_is_far_above_that_of_the_loss_is_found_and_respected(root: float) -> None:
    """Large terms cancel: the loss is off by 0.06 where units in its last place are 1e-7."""

    def noisy(t: Tensor) -> Tensor:
        ones = [torch.sin(k * t) ** 2 + torch.cos(k * t) ** 2 for k in range(900, 932)]
        return 4 * t * (t - root) / root**2 + 5e4 * (torch.stack(ones) - 1).sum()

    objective = line(noisy, torch.float32)
    found = critical_learning_rate(objective, torch.ones(1), 1.0, rel=1e-4)
    assert found.rate.low < root < found.rate.high


def test_it_depends_on_the_line_alone() -> None:
    """A scale of the step, and a linear map of the parameters that keeps the function, change nothing."""
    objective = network()
    D = -0.1 * objective.gradient()
    found = critical_learning_rate(objective, D, 0.1)
    longer = critical_learning_rate(objective, 8 * D, 0.8)
    assert longer.rate.value == pytest.approx(found.rate.value, rel=0.01)
    assert max(longer.rate.low, found.rate.low) < min(longer.rate.high, found.rate.high)
    A, theta, T = gaussian(4, 4), gaussian(4, seed=1), gaussian(4, 4, seed=2)
    A, step = A @ A.mT, gaussian(4, seed=3)
    step = step * -torch.sign(step @ A @ theta)
    inverse = torch.linalg.inv(T)
    moved = quadratic(inverse.mT @ A @ inverse, T @ theta)
    pair = [critical_learning_rate(o, d, 1.0) for o, d in ((quadratic(A, theta), step), (moved, T @ step))]
    assert pair[0].multiple.low == pytest.approx(pair[1].multiple.low, rel=1e-9)
    assert pair[0].multiple.value == pytest.approx(pair[1].multiple.value, rel=1e-9)


def test_parameters_before_the_step_may_be_others_than_those_of_the_model() -> None:
    objective = network()
    old, D = objective.parameters(), -objective.gradient()
    expected = critical_learning_rate(objective, D, 1.0)
    with objective.at(old + D):
        found = critical_learning_rate(objective, D, 1.0, at=old)
        assert critical_learning_rate(objective, -objective.gradient(), 1.0).multiple != expected.multiple
    assert (found.multiple.low, found.multiple.high) == (expected.multiple.low, expected.multiple.high)


def test_the_loss_of_other_data_tells_when_the_update_leaves_its_basin() -> None:
    """The update of one quadratic, on the loss of another: 2 g'u / u'Hu with its gradient and Hessian."""
    first, second = torch.diag(torch.tensor([4.0, 1.0])).double(), torch.diag(torch.tensor([1.0, 9.0])).double()
    theta = torch.tensor([1.0, 0.5], dtype=torch.float64)
    u = first @ theta
    own, other = (critical_learning_rate(quadratic(A, theta), -0.01 * u, 0.01) for A in (first, second))
    assert other.rate.value == pytest.approx(2 * float(u @ second @ theta) / float(u @ second @ u), rel=1e-6)
    assert other.rate.value != pytest.approx(own.rate.value, rel=0.1)


@pytest.mark.parametrize("start", [1e-3, 0.3, 40.0, 1e4])
def test_the_start_of_the_search_changes_its_cost_and_no_more_than_the_bracket(start: float) -> None:
    objective = network()
    D = -0.1 * objective.gradient()
    cold, other = critical_learning_rate(objective, D, 0.1), critical_learning_rate(objective, D, 0.1, start=start)
    assert max(other.rate.low, cold.rate.low) < min(other.rate.high, cold.rate.high)
    warm = critical_learning_rate(objective, D, 0.1, start=cold.multiple.value)
    assert max(warm.rate.low, cold.rate.low) < min(warm.rate.high, cold.rate.high)
    assert warm.losses <= 5 < cold.losses


def dip(t: Tensor) -> Tensor:
    """Return a loss that falls, is above its start in a bump at 0.5, and then falls on until it rises at 4."""
    return 0.1 * (t**2 - 4 * t) + 0.5 * torch.exp(-200 * (t - 0.55) ** 2)


def test_the_first_crossing_may_be_missed_by_doubling_and_is_found_by_a_scan() -> None:
    objective = line(dip)
    first = brentq(lambda t: float(dip(torch.tensor(t, dtype=torch.float64))), 0.3, 0.55)
    missed = critical_learning_rate(objective, ONE, 1.0)
    assert missed.rate.low <= 4 <= missed.rate.high
    found = critical_learning_rate(objective, ONE, 1.0, scan=64)
    assert found.rate.low < first < found.rate.high


def test_a_step_that_raises_the_loss_has_a_multiple_below_one() -> None:
    objective = line(lambda t: 3 + t**2 - 0.25 * t)
    found = critical_learning_rate(objective, ONE, 0.1)
    assert found.multiple.value == pytest.approx(0.25, rel=1e-9)
    assert found.rate.value == pytest.approx(0.025, rel=1e-9)


def test_a_step_that_lands_on_the_crossing_is_bracketed() -> None:
    found = critical_learning_rate(line(lambda t: 3 + t**2 - t), ONE, 0.1)
    assert found.multiple.low < 1 < found.multiple.high
    assert 1 - found.multiple.low / found.multiple.high <= 1 / 16


def test_a_dip_close_to_the_start_of_a_rising_line_is_found() -> None:
    """The change for its length is far from constant there."""
    found = critical_learning_rate(line(lambda t: t - 1e-4 * torch.tanh(1e5 * t) + 1), ONE, 1.0)
    assert found.multiple.low < 1e-4 < found.multiple.high


def test_infinite_loss_counts_as_higher() -> None:
    barrier = line(lambda t: -t + torch.where(t > 0.3, math.inf, 0.0))
    found = critical_learning_rate(barrier, ONE, 1.0)
    assert found.multiple.low <= 0.3 <= found.multiple.high


def test_the_directional_sharpness_is_twice_the_edge_ratio_over_the_learning_rate() -> None:
    objective = network()
    d = objective.gradient() + 0.1 * gaussian(objective.size, seed=3)
    along = directional_sharpness(objective, -0.2 * d)
    found = along.sharpness(0.2)
    half = directional_sharpness(objective, -0.1 * d).sharpness(0.1)
    assert found.value == pytest.approx(half.value, rel=1e-12)  # that of the update, whatever the learning rate
    assert found.value == pytest.approx(2 * along.edge_ratio.value / 0.2, rel=1e-14)
    assert found.low <= found.value <= found.high
    along = directional_sharpness(objective, -0.2 * objective.gradient())
    largest = float(
        torch.linalg.eigvalsh(
            torch.autograd.functional.hessian(lambda x: _value(objective, x), objective.parameters())
        )[-1]
    )
    assert along.sharpness(0.2).value <= largest
    with pytest.raises(ProbeError, match="lr must be finite and above 0, got 0"):
        along.sharpness(0.0)


def _value(objective: Objective, theta: Tensor) -> Tensor:
    """Return the loss as a differentiable function of the flat parameters."""
    parameters = dict(zip(objective.names, objective.vector.views(theta), strict=True))
    losses = [
        nn.functional.cross_entropy(torch.func.functional_call(objective.model, parameters, x), y, reduction="sum")
        for x, y in objective.data.batches
    ]
    return sum(losses) / objective.samples  # type: ignore[no-any-return]


def test_a_ratio_to_a_curvature_of_unknown_sign_is_missing() -> None:
    multiple = critical_learning_rate(line(lambda t: t**2 - t), ONE, 1.0).multiple
    edge = exact_estimate(0.5)
    assert math.isnan(nonquadraticity(multiple, exact_estimate(math.nan)).value)
    assert nonquadraticity(multiple, exact_estimate(-0.5)).value < 0
    wide = nonquadraticity(multiple, edge)
    assert (wide.low, wide.high) == pytest.approx((2 / multiple.high, 2 / multiple.low))


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "uphill": (lambda: critical_learning_rate(line(lambda t: t + t**2), ONE, 1.0), "does not fall along the step"),
    "downhill": (lambda: critical_learning_rate(line(lambda t: -t), ONE, 1.0), "does not rise along the step"),
    "flat": (lambda: critical_learning_rate(line(lambda t: 0 * t + 1), ONE, 1.0), "no more than its rounding"),
    "not a number": (
        lambda: critical_learning_rate(line(lambda t: -torch.sqrt(1 - t) * 0 - t), 4 * ONE, 1.0),
        r"the loss is not a number from 0\.2\d* times the step on",
    ),
    "hidden by rounding": (
        lambda: critical_learning_rate(line(lambda t: 1e6 + t**2 - t, torch.float32), 0.1 * ONE, 1.0),
        "rounding",
    ),
    "few losses": (
        lambda: critical_learning_rate(line(lambda t: t**2 - t), 1e-3 * ONE, 1.0, max_losses=5),
        "max_losses must be larger: 5 losses",
    ),
    "start": (
        lambda: critical_learning_rate(line(lambda t: t**2 - t), ONE, 1.0, at=math.inf * ONE),
        "loss before the step must be finite",
    ),
    "zero step": (lambda: critical_learning_rate(network(), torch.zeros(51), 1.0), "displacement must not be zero"),
    "infinite step": (lambda: critical_learning_rate(network(), torch.full((51,), math.inf), 1.0), "must be finite"),
    "short step": (lambda: critical_learning_rate(network(), torch.ones(3), 1.0), r"shape \(51,\)"),
    "lr": (lambda: critical_learning_rate(network(), torch.ones(51), 0.0), "lr must be finite and above 0, got 0"),
    "beginning": (
        lambda: critical_learning_rate(network(), torch.ones(51), 1.0, start=0.0),
        "start must be finite and above 0, got 0",
    ),
    "rel": (lambda: critical_learning_rate(network(), torch.ones(51), 1.0, rel=1.0), "rel must be above 0 and below 1"),
    "scan": (lambda: critical_learning_rate(network(), torch.ones(51), 1.0, scan=-1), "scan must be 0 or a number"),
    "budget": (
        lambda: critical_learning_rate(network(), torch.ones(51), 1.0, max_losses=2),
        "max_losses must be at least 3, got 2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_bracket_is_refused_with_the_reason(name: str) -> None:
    call, words = CASES[name]
    with pytest.raises(ProbeError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_train_mode_is_refused_and_dropout_too() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    objective = Objective(net, CrossEntropy(), [(torch.randn(6, 4), torch.arange(6) % 3)], mode="train")
    with pytest.raises(ProbeError, match="mode must be 'eval' or 'frozen' for a critical learning rate, got 'train'"):
        critical_learning_rate(objective, torch.ones(objective.size), 1.0)
    noisy = Objective(
        nn.Sequential(nn.Linear(4, 3), nn.Dropout()), CrossEntropy(), objective.data.batches, mode="frozen"
    )
    with pytest.raises(ProbeError, match="Dropout"):
        critical_learning_rate(noisy, torch.ones(noisy.size), 1.0)


def test_a_loss_without_second_derivatives_has_one() -> None:
    """No derivative is taken at all."""

    def blocked(model: Vector, _: Tensor) -> Tensor:
        with torch.no_grad():
            return ((model.theta - 1) ** 2).sum()

    found = critical_learning_rate(
        Objective(Vector(torch.zeros(2)), blocked, [torch.zeros(1)]), torch.full((2,), 0.5), 0.5
    )
    assert found.multiple.value == pytest.approx(4)


def test_the_values_are_numbers_of_python() -> None:
    found = critical_learning_rate(network(), -network().gradient(), 0.5)
    assert all(isinstance(x, float) for x in (found.rate.value, found.sharpness.low))
    assert isinstance(found.losses, int)
    assert np.isfinite(found.rate.seconds)
