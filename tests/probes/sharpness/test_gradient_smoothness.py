"""Gradient-normalized smoothness: closed forms of a cubic, an independent search, the definition, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian

from helpers import Vector, gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.gradient_smoothness import gradient_smoothness


def network() -> tuple[nn.Module, Objective, Callable[[Tensor], Tensor]]:
    x, y = gaussian(30, 3), torch.arange(30) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective = Objective(net, CrossEntropy(), [(x[:10], y[:10]), (x[10:], y[10:])])

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in net.parameters()])
        shaped = {name: part.view(p.shape) for (name, p), part in zip(net.named_parameters(), parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(net, shaped, (x,)), y)

    return net, objective, loss


@pytest.mark.parametrize("third", [1.0, 40.0])
def test_of_a_cubic_it_is_the_root_of_twice_the_gradient_over_the_third_derivative(third: float) -> None:
    objective = Objective(Vector(torch.tensor([3.0])), lambda m, x: x[0] * third * m.theta[0] ** 3 / 6, [torch.ones(1)])
    right = math.sqrt(2 * (third * 9 / 2) / third)
    found = gradient_smoothness(objective, random=0)
    assert right <= found.radius.value * (1 + 1e-9) <= right * 17 / 15
    assert math.isnan(found.radius.low)
    assert (found.radius.high, found.radius.bound) == (found.radius.value, "upper bound")
    exact = gradient_smoothness(objective, random=0, rel=1e-6)
    assert exact.radius.value == pytest.approx(right, rel=1e-5)


def test_with_the_gauss_newton_matrix_the_error_of_the_matrix_counts_too() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    net.weight.data[:] = 2.0

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).square()

    one = torch.ones(1, 1, dtype=torch.float64)
    objective = Objective(Squared(), MeanSquaredError(), [(one, one)])
    # f = (w^2 - 1)^2 at 2: f' = 4w(w^2 - 1) = 24, the matrix 2 (2w)^2 = 32
    roots: list[float] = []
    for level in (24, -24):
        cubic = np.polynomial.Polynomial([0, 12 * 4 - 4 - 32, 12 * 2, 4])  # f'(2 + t) - f'(2) - 32 t
        roots += [abs(r.real) for r in (cubic - level).roots() if abs(r.imag) < 1e-9]
    found = gradient_smoothness(objective, model="gauss_newton", random=0, rel=1e-6)
    assert found.radius.value == pytest.approx(min(roots), rel=1e-5)
    assert gradient_smoothness(objective, random=0).radius.value > found.radius.value * 1.01


def test_along_each_direction_it_is_that_of_an_independent_search() -> None:
    _, objective, loss = network()
    theta = objective.parameters()
    g, H = grad(loss)(theta), hessian(loss)(theta)
    slope = grad(loss)

    def crossing(u: Tensor) -> float:
        def excess(t: float) -> float:
            return float((slope(theta + t * u) - g - t * (H @ u)).norm() - g.norm())

        ends = np.linspace(0, 10, 41)
        first = next((b for b in ends if excess(b) > 0), None)
        return math.inf if first is None else brentq(excess, first - 0.25, first, xtol=1e-6)

    found = gradient_smoothness(objective, rel=1e-4)
    along = {"gradient": g / g.norm(), "image of the gradient": H @ g / (H @ g).norm()}
    for name, u in along.items():
        assert found.by_direction[name] == pytest.approx(min(crossing(u), crossing(-u)), rel=2e-4)
    assert list(found.by_direction) == ["image of the gradient", "gradient", "random 1", "random 2"]
    assert found.radius.value == min(found.by_direction.values())
    assert found.radius.products == 5


def test_the_definition_holds_for_no_larger_radius() -> None:
    _, objective, loss = network()
    theta = objective.parameters()
    g, H, slope = grad(loss)(theta), hessian(loss)(theta), grad(loss)
    found = gradient_smoothness(objective)
    gamma = 1.001 * found.radius.high
    points = [s * found.radius.high * u for u in (g / g.norm(), H @ g / (H @ g).norm()) for s in (1, -1)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        z = torch.randn(len(g), generator=generator).double()
        points += [s * found.radius.high * z / z.norm() for s in (1, -1)]
    held = [float((slope(theta + h) - g - H @ h).norm()) <= float(g.norm() * h.norm()) / gamma for h in points]
    assert not all(held)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quadratic_has_no_radius_and_rounding_is_none(dtype: torch.dtype) -> None:
    eigenvalues, theta = gaussian(20).exp().to(dtype), gaussian(20, seed=1).to(dtype)
    objective = Objective(
        Vector(theta), lambda m, x: (eigenvalues * m.theta**2).sum() / 2 * x[0], [torch.ones(1, dtype=dtype)]
    )
    with pytest.raises(ProbeError, match="too large to be measured"):
        gradient_smoothness(objective)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "fisher"}, "model must be one of 'hessian', 'gauss_newton', got 'fisher'"),
        ({"random": -1}, "random must be at least 0"),
        ({"rel": 1.0}, "rel in"),
    ],
    ids=["model", "random", "rel"],
)
def test_wrong_arguments_are_refused(change, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        gradient_smoothness(network()[1], **change)


def test_without_a_gradient_there_is_no_radius() -> None:
    objective = Objective(Vector(torch.zeros(3)), lambda m, x: m.theta.square().sum() * x[0], [torch.ones(1)])
    with pytest.raises(ProbeError, match="must be finite and not zero, got the norm 0"):
        gradient_smoothness(objective)
