"""Worst-case sharpness: closed forms, random directions, SciPy, minibatches, radius and budget, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from scipy.optimize import NonlinearConstraint, minimize
from torch import Tensor, nn

from helpers import Vector, gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.worst_case import WorstCase, worst_case_sharpness
from lossscope.probes.statistics.estimate import mean_estimate

SPECTRA = {
    "powers": 1 / torch.arange(1.0, 201.0),
    "roots": torch.arange(1.0, 201.0) ** -0.5,
    "even": torch.linspace(0.5, 1, 200),
    "close pair": torch.cat([torch.tensor([1.0, 0.97]), torch.full((198,), 0.3)]),
    "half negative": torch.linspace(-3, 1, 200),
}


def formula(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda model, _: loss(model.theta), [torch.zeros(1)])


def quadratic(eigenvalues: Tensor, theta: Tensor) -> tuple[Objective, Tensor]:
    """Return a loss with its minimum at theta and these eigenvalues in a random basis, and its Hessian."""
    n, center = len(theta), theta.clone()
    basis = torch.linalg.qr(gaussian(n, n, seed=3))[0]
    H = basis @ torch.diag(eigenvalues.double()) @ basis.mT
    return formula(lambda t: 0.2 + (t - center) @ H @ (t - center) / 2, theta), H


def trained(dtype: torch.dtype = torch.float64) -> Objective:
    """A small network after some steps of Adam, on batches of 16."""
    x, y = gaussian(64, 6).to(dtype), torch.arange(64) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Objective(net, CrossEntropy(), list(zip(x.split(16), y.split(16), strict=True)))


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_at_the_minimum_of_a_quadratic_it_is_half_the_largest_eigenvalue(spectrum: str, *, relative: bool) -> None:
    theta = gaussian(200, seed=1)
    objective, H = quadratic(SPECTRA[spectrum], theta)
    D = theta if relative else torch.ones(200).double()
    top = float(torch.linalg.eigvalsh(D[:, None] * H * D)[-1])
    found = worst_case_sharpness(objective, rho=0.3, relative=relative, rel=1e-5, max_evaluations=1000)
    assert found.sharpness.value == pytest.approx(0.3**2 * top / 2, rel=0.01)
    assert found.sharpness.low <= 0.3**2 * top / 2
    assert found.sharpness.converged
    assert found.first_order == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_corner_is_higher_where_every_weight_has_its_own_bound(seed: int) -> None:
    A, theta = gaussian(6, 6, seed=seed), gaussian(6, seed=seed + 10)
    objective = formula(lambda t: (A @ (t - theta)).square().sum() / 2, theta)
    corners = torch.tensor(list(product((-1.0, 1.0), repeat=6)), dtype=torch.float64) * 0.1 * theta
    best = float((corners @ A.mT).square().sum(1).max() / 2)
    found = worst_case_sharpness(objective, rho=0.1, norm="linf", restarts=12)
    assert found.sharpness.value == pytest.approx(best, rel=1e-9)


def test_on_a_linear_loss_it_is_the_dual_norm_of_the_gradient() -> None:
    slope, theta = gaussian(9, seed=6), gaussian(9, seed=7)
    objective = formula(lambda t: slope @ (t - theta) + 2, theta)
    for norm, right in (("l2", (slope * theta).norm()), ("linf", (slope * theta).abs().sum())):
        found = worst_case_sharpness(objective, rho=0.1, norm=norm)  # type: ignore[arg-type]
        assert found.sharpness.value == pytest.approx(0.1 * float(right), rel=1e-9)
        assert found.first_order == pytest.approx(0.1 * float(right), rel=1e-9)


def rise(objective: Objective, e: Tensor) -> float:
    return objective.value_at(objective.parameters() + e) - objective.value()


@pytest.mark.parametrize("rho", [0.05, 1.0])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_no_random_direction_of_the_same_norm_is_higher(norm: Any, rho: float) -> None:
    objective = trained()
    rho = rho if norm == "l2" else rho / 10
    found = worst_case_sharpness(objective, rho=rho, norm=norm, per_batch=False)
    z = gaussian(100, objective.size, seed=4)
    u = z / z.norm(dim=1, keepdim=True) if norm == "l2" else z.sign()
    with objective.evaluating():
        best = max(rise(objective, rho * one * objective.parameters()) for one in u)
    assert found.sharpness.value > 1.2 * best


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_scipys_constrained_optimizer_finds_nothing_higher(rho: float) -> None:
    objective = trained()
    theta = objective.parameters()

    def negative(u: Any) -> tuple[float, Any]:
        with objective.at(theta + torch.from_numpy(u) * theta):
            return -objective.value(), -(objective.gradient() * theta).numpy()

    inside = NonlinearConstraint(lambda u: u @ u, -math.inf, rho**2, jac=lambda u: 2 * u[None])
    best = -math.inf
    for seed in range(2):
        start = gaussian(objective.size, seed=seed)
        at = (rho * start / start.norm()).numpy()
        found = minimize(negative, at, jac=True, method="SLSQP", constraints=[inside], options={"maxiter": 100})
        best = max(best, -float(found.fun) - objective.value())
    mine = worst_case_sharpness(objective, rho=rho, per_batch=False).sharpness.value
    assert 0.997 * best <= mine <= 1.01 * best


def within(objective: Objective, found: WorstCase, rho: float) -> float:
    """Return the length of the displacement over the radius."""
    return float((found.displacement / objective.parameters()).norm()) / rho


def test_the_value_is_the_mean_over_the_batches_and_reached_within_the_radius() -> None:
    objective = trained()
    before = objective.parameters()
    found = worst_case_sharpness(objective)
    assert torch.equal(objective.parameters(), before)
    assert found.sharpness.value == pytest.approx(sum(found.rises) / 4, rel=1e-12)
    assert within(objective, found, 0.5) <= 1 + 1e-12
    largest = max(range(4), key=lambda i: found.rises[i])
    assert rise(objective.batch(largest), found.displacement) == pytest.approx(found.rises[largest], rel=1e-9)
    assert found.sharpness.samples == 20
    over_batches = mean_estimate(found.rises)
    assert found.sharpness.low == pytest.approx(over_batches.low, rel=1e-9)
    assert found.sharpness.stderr == pytest.approx(over_batches.stderr, rel=1e-9)
    assert math.isnan(found.sharpness.high)


def test_smaller_batches_are_sharper_and_weighted_by_their_size() -> None:
    objective = trained()
    whole = worst_case_sharpness(objective, per_batch=False)
    assert worst_case_sharpness(objective).sharpness.value > 1.1 * whole.sharpness.value
    assert len(whole.rises) == 1
    (x, y), *_ = objective.data.batches
    uneven = Objective(objective.model, CrossEntropy(), [(x[:12], y[:12]), (x[12:], y[12:])])
    found = worst_case_sharpness(uneven)
    assert found.sharpness.value == pytest.approx(0.75 * found.rises[0] + 0.25 * found.rises[1], rel=1e-12)


def test_it_grows_with_the_radius_and_is_never_negative() -> None:
    objective = trained()
    values = [worst_case_sharpness(objective, rho=rho, rel=0.01).sharpness.value for rho in (0.01, 0.1, 1)]
    assert values == sorted(values)
    top = formula(lambda t: 1 - (t - 1).square().sum(), torch.ones(3))  # no perturbation is the best
    assert worst_case_sharpness(top).sharpness.value == 0


def test_more_restarts_and_evaluations_never_lower_it() -> None:
    objective = trained()
    few = worst_case_sharpness(objective, rho=2, restarts=1, max_evaluations=3)
    more = worst_case_sharpness(objective, rho=2, restarts=1, max_evaluations=20)
    most = worst_case_sharpness(objective, rho=2, restarts=3, max_evaluations=60)
    assert few.sharpness.value <= more.sharpness.value <= most.sharpness.value
    assert not few.sharpness.converged
    assert few.sharpness.cause == "on 4 of 4 batches the best ascent was stopped by its budget"
    assert (few.evaluations, most.sharpness.samples) == (12, 12)


def test_it_is_the_same_with_the_same_seed_and_the_starts_differ_with_another() -> None:
    objective = trained()
    first, again, other = (
        worst_case_sharpness(objective, rho=3, seed=seed, per_batch=False, max_evaluations=20) for seed in (1, 1, 2)
    )
    assert torch.equal(first.displacement, again.displacement)
    assert not torch.equal(first.displacement, other.displacement)


def test_float32_agrees_with_float64() -> None:
    single = trained(torch.float32)
    value = worst_case_sharpness(single).sharpness.value
    assert value == pytest.approx(worst_case_sharpness(single.in_double()).sharpness.value, rel=1e-3)


def test_batch_norm_keeps_its_statistics() -> None:
    x, y = gaussian(40, 4, dtype=torch.float32), torch.arange(40) % 2
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    worst_case_sharpness(Objective(net, CrossEntropy(), [(x, y)], mode="train"))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be positive"),
        ({"rho": math.nan}, "rho must be positive"),
        ({"norm": "l1"}, "norm must be one of l2, linf"),
        ({"restarts": 0}, "restarts"),
        ({"rel": 1.0}, "rel must be above 0"),
        ({"max_evaluations": 14}, "at least 3 for each of 5 restarts"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        worst_case_sharpness(formula(lambda t: t.square().sum(), torch.ones(2)), **options)


def test_weights_that_cannot_move_and_losses_without_a_maximum_are_refused() -> None:
    with pytest.raises(ProbeError, match="all weights are zero"):
        worst_case_sharpness(formula(lambda t: t.square().sum(), torch.zeros(3)))
    pole = formula(lambda t: torch.where(t[0] > 1.2, math.inf, t.square().sum()), torch.ones(3))
    with pytest.raises(ProbeError, match="the loss is inf"):
        worst_case_sharpness(pole)


def test_a_dtype_that_cannot_resolve_the_radius_is_refused() -> None:
    x, y = torch.ones(4, 100).bfloat16(), torch.arange(4)
    coarse = Objective(nn.Linear(100, 20).bfloat16(), CrossEntropy(), [(x, y)])
    with pytest.raises(ProbeError, match=r"rho must be at least 1\.4 for the dtype"):
        worst_case_sharpness(coarse)
    assert worst_case_sharpness(coarse, rho=3.0).sharpness.value > 0
