"""Keskar's sharpness: closed forms on quadratics, an independent box optimizer, invariances, refusals."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, minimize
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.keskar import keskar_sharpness


class Vector(nn.Module):
    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.double().clone())


def formula(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda model, _: loss(model.theta), [torch.zeros(1)])


def trained(steps: int = 200, dtype: torch.dtype = torch.float64, *, hidden: int = 8) -> Objective:
    """A small network after some steps of Adam."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x, y = torch.randn(64, 6, dtype=dtype), torch.randint(0, 3, (64,))
        net = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3)).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Objective(net, CrossEntropy(), [(x, y)])


def half_width(objective: Objective, epsilon: float) -> Tensor:
    return epsilon * (objective.parameters().abs() + 1)


@pytest.mark.parametrize("epsilon", [5e-4, 1e-3, 0.1])
def test_at_the_minimum_of_a_diagonal_quadratic_it_is_the_sum_of_half_the_eigenvalues_in_box_units(
    epsilon: float,
) -> None:
    eigenvalues, center = gaussian(20, seed=1).abs(), gaussian(20, seed=2)
    objective = formula(lambda t: 0.3 + (eigenvalues * (t - center).square()).sum() / 2, center)
    rise = float((eigenvalues * half_width(objective, epsilon).square()).sum() / 2)
    found = keskar_sharpness(objective, epsilon=epsilon)
    assert found.rise == pytest.approx(rise, rel=1e-9)
    assert found.sharpness.value == pytest.approx(100 * rise / 1.3, rel=1e-9)
    assert found.sharpness.converged


def test_a_separable_quadratic_with_negative_curvature_has_its_maximum_inside_the_box() -> None:
    eigenvalues, slope, epsilon = gaussian(30, seed=3), 0.05 * gaussian(30, seed=4), 0.1
    theta = gaussian(30, seed=5)
    objective = formula(lambda t: (slope * (t - theta) + eigenvalues * (t - theta).square() / 2).sum(), theta)
    b = half_width(objective, epsilon)
    inside = (-slope / eigenvalues).clamp(-b, b)
    at_best = torch.where(eigenvalues < 0, inside, torch.where(slope < 0, -b, b))
    best = float((slope * at_best + eigenvalues * at_best.square() / 2).sum())
    assert (inside.abs() < b)[eigenvalues < 0].any()
    assert keskar_sharpness(objective, epsilon=epsilon, rel=1e-6).rise == pytest.approx(best, rel=1e-5)


def test_on_a_linear_loss_it_is_the_dual_norm_of_the_gradient() -> None:
    slope, theta = gaussian(9, seed=6), gaussian(9, seed=7)
    objective = formula(lambda t: slope @ (t - theta) + 2, theta)
    found = keskar_sharpness(objective, restarts=1)
    assert found.rise == pytest.approx(float((slope.abs() * half_width(objective, 1e-3)).sum()), rel=1e-9)
    assert (found.evaluations, found.gradients) == (2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_no_corner_of_a_small_convex_box_is_higher(seed: int) -> None:
    A, theta = gaussian(6, 6, seed=seed), gaussian(6, seed=seed + 10)
    objective = formula(lambda t: (A @ (t - theta)).square().sum() / 2, theta)
    b = half_width(objective, 0.1)
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=6)), dtype=torch.float64) * b
    best = float((corners @ A.mT).square().sum(1).max() / 2)
    assert keskar_sharpness(objective, epsilon=0.1, restarts=12, rel=1e-6).rise == pytest.approx(best, rel=1e-9)


def by_scipy(objective: Objective, epsilon: float) -> float:
    """The same maximum by SciPy's L-BFGS-B, which the source used."""
    center, b = objective.parameters().numpy(), half_width(objective, epsilon).numpy()

    def negative(x: Any) -> tuple[float, Any]:
        with objective.at(torch.from_numpy(x)):
            return -objective.value(), -objective.gradient().numpy()

    options = {"maxiter": 200, "ftol": 1e-14, "gtol": 1e-10}
    found = minimize(
        negative, center, jac=True, method="L-BFGS-B", bounds=Bounds(center - b, center + b), options=options
    )
    return -float(found.fun) - objective.value()


@pytest.mark.parametrize(("epsilon", "share"), [(5e-4, 0.99), (1e-3, 0.99), (1e-2, 0.95)])
def test_scipys_box_optimizer_finds_hardly_anything_higher(epsilon: float, share: float) -> None:
    objective = trained()  # a loss with many local maxima in a wide box
    found = keskar_sharpness(objective, epsilon=epsilon)
    assert share * by_scipy(objective, epsilon) <= found.rise


def test_the_value_is_reached_inside_the_box_and_the_model_stands_where_it_stood() -> None:
    objective = trained()
    before = objective.parameters()
    found = keskar_sharpness(objective, epsilon=0.05)
    assert torch.equal(objective.parameters(), before)
    assert (found.displacement.abs() <= half_width(objective, 0.05) * (1 + 1e-12)).all()
    with objective.at(before + found.displacement):
        assert objective.value() - found.loss == pytest.approx(found.rise, rel=1e-9)
    assert found.starts[0] == found.rise
    assert list(found.starts) == sorted(found.starts, reverse=True)


def test_it_grows_with_the_box_and_is_never_negative() -> None:
    objective = trained()
    values = [keskar_sharpness(objective, epsilon=e).sharpness.value for e in (1e-4, 5e-4, 1e-3, 1e-2, 0.1)]
    assert values[0] > 0
    assert values == sorted(values)
    top = formula(lambda t: 1 - t.square().sum(), torch.zeros(3))  # d = 0 is the maximum
    assert keskar_sharpness(top).sharpness.value == 0


def test_more_restarts_and_evaluations_never_lower_it() -> None:
    objective = trained()
    few = keskar_sharpness(objective, epsilon=0.2, restarts=1, max_evaluations=2)
    more = keskar_sharpness(objective, epsilon=0.2, restarts=1, max_evaluations=100)
    most = keskar_sharpness(objective, epsilon=0.2, restarts=6, max_evaluations=600)
    assert few.rise <= more.rise <= most.rise
    assert not few.sharpness.converged
    assert (few.evaluations, most.sharpness.samples) == (2, 6)
    assert most.evaluations <= 600


def test_float32_agrees_with_float64() -> None:
    single = trained(dtype=torch.float32)
    double = single.in_double()
    assert keskar_sharpness(single).rise == pytest.approx(keskar_sharpness(double).rise, rel=0.02)


def test_permuting_hidden_units_leaves_it_and_rescaling_them_does_not() -> None:
    objective = trained(hidden=5)
    value = keskar_sharpness(objective, rel=1e-6, restarts=1).sharpness.value
    first, _, last = objective.model
    with torch.no_grad():
        for p in (first.weight, first.bias):
            p.copy_(p.flip(0))
        last.weight.copy_(last.weight.flip(1))
    assert keskar_sharpness(objective, rel=1e-6, restarts=1).sharpness.value == pytest.approx(value, rel=1e-9)
    with torch.no_grad():
        first.weight.mul_(10), first.bias.mul_(10), last.weight.div_(10)
    assert keskar_sharpness(objective).sharpness.value > 2 * value  # the same function: why it is legacy


def test_equal_seeds_repeat() -> None:
    objective = trained()
    first, again, other = (keskar_sharpness(objective, epsilon=0.3, seed=seed) for seed in (1, 1, 2))
    assert first.starts == again.starts != other.starts
    assert np.isnan(first.sharpness.high)


def test_batch_norm_in_eval_mode_keeps_its_statistics() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        x, y = torch.randn(32, 1, 6, 6), torch.randint(0, 3, (32,))
    net(x)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    found = keskar_sharpness(Objective(net, CrossEntropy(), [(x, y)]))
    assert found.sharpness.value > 0
    assert all(torch.equal(b, buffers[name]) for name, b in net.named_buffers())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0"),
        ({"epsilon": float("nan")}, "epsilon must be positive"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"rel": 1.0}, "rel must be above 0 and below 1, got 1"),
        ({"max_evaluations": 5}, "max_evaluations must be at least 2 for each of 5 restarts, got 5"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        keskar_sharpness(formula(lambda t: t.square().sum(), torch.ones(2)), **options)


def test_a_loss_below_minus_one_and_a_coarse_dtype_are_refused() -> None:
    with pytest.raises(ProbeError, match="the loss must be above -1 for a relative rise, got -2"):
        keskar_sharpness(formula(lambda t: t.square().sum() - 2, torch.zeros(2)))
    net = nn.Linear(3, 2).to(torch.bfloat16)
    coarse = Objective(net, lambda model, x: model(x).float().square().mean(), [torch.ones(4, 3, dtype=torch.bfloat16)])
    with pytest.raises(ProbeError, match="convert the model to float32"):
        keskar_sharpness(coarse)
