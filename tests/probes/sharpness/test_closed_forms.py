"""Curvature in closed form: regressions, the scalar factorization, quadratics, random matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import dense, gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import preconditioned, restricted, scaled
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.average_case import average_sharpness, low_pass_loss
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import adaptive_trace, log_fisher_rao, theta_hessian_theta
from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma
from lossscope.probes.sharpness.per_block import per_module
from lossscope.probes.sharpness.worst_case import worst_case_sharpness

N, D, C = 40, 5, 3
SPLIT = (23, 12, 5)


def linear(outputs: int) -> nn.Linear:
    net = nn.Linear(D, outputs, bias=False).double()
    net.weight.data.copy_(gaussian(outputs, D, seed=7))
    return net


def batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(SPLIT), y.split(SPLIT), strict=True))


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


class Vector(nn.Module):
    """Module with a single parameter, for losses given by a formula."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.double())


def formula(loss: Callable[[Tensor], Tensor], theta: Tensor) -> Objective:
    return Objective(Vector(theta), lambda model, _: loss(model.theta), [torch.zeros(1)])


def quadratic(eigenvalues: Tensor) -> Objective:
    return formula(lambda t: (eigenvalues.double() * t.square()).sum() / 2, torch.full((len(eigenvalues),), 0.3))


# Regressions: closed formulas, independent of automatic differentiation.


def test_linear_regression_has_twice_the_second_moment_of_its_inputs() -> None:
    x, y = gaussian(N, D), gaussian(N, 1, seed=1)
    objective = Objective(linear(1), MeanSquaredError(), batches(x, y))
    expected = 2 / N * x.mT @ x
    assert_close(dense(hessian(objective)), expected)
    assert_close(dense(gauss_newton(objective)), expected)
    residual = (x @ objective.model.weight.detach().mT - y)[:, 0]
    assert_close(dense(fisher(objective, kind="empirical")), 4 / N * (x * residual.square()[:, None]).mT @ x)


def test_outputs_of_a_linear_regression_share_one_mean() -> None:
    x, y = gaussian(N, D), gaussian(N, C, seed=1)
    objective = Objective(linear(C), MeanSquaredError(), batches(x, y))
    expected = torch.kron(torch.eye(C, dtype=torch.float64), 2 / (N * C) * x.mT @ x)
    assert_close(dense(hessian(objective)), expected)
    assert_close(dense(gauss_newton(objective)), expected)


def test_logistic_regression_weights_its_inputs_by_their_variance() -> None:
    x, y = gaussian(N, D), (gaussian(N, 1, seed=1) > 0).double()
    net = linear(1)
    objective = Objective(net, lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]), batches(x, y))
    p = torch.sigmoid(x @ net.weight.detach().mT)
    assert_close(dense(hessian(objective)), (x * p * (1 - p)).mT @ x / N)


def test_softmax_regression_is_its_own_gauss_newton_matrix() -> None:
    x, y, net = gaussian(N, D), torch.arange(N) % C, linear(C)
    objective = Objective(net, CrossEntropy(), batches(x, y))
    p = (x @ net.weight.detach().mT).softmax(-1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = sum(torch.kron(s, torch.outer(row, row)) for s, row in zip(S, x, strict=True)) / N
    for operator in (hessian(objective), gauss_newton(objective), fisher(objective, kind="true")):
        assert_close(dense(operator), expected)
    errors = p - F.one_hot(y, C)
    gradients = (errors[:, :, None] * x[:, None, :]).reshape(N, -1)
    assert_close(dense(fisher(objective, kind="empirical")), gradients.mT @ gradients / N)
    theta = net.weight.detach().reshape(-1)
    assert log_fisher_rao(objective).value == pytest.approx(math.log(float(theta @ expected @ theta)), rel=1e-12)


def test_the_relative_flatness_of_a_softmax_regression_is_its_closed_form() -> None:
    """T3: the sum over classes s, t of <w_s, w_t> tr H_st is the mean of |x|^2 (sum_c K_cc p_c - p'Kp), K = WW'."""
    x, net = gaussian(N, D), linear(C)
    objective = Objective(net, CrossEntropy(), batches(x, torch.arange(N) % C))
    W = net.weight.detach()
    K, p = W @ W.mT, (x @ W.mT).softmax(-1)
    known = float((x.square().sum(1) * (p @ K.diagonal() - ((p @ K) * p).sum(1))).mean())
    for operator in (hessian(objective), gauss_newton(objective)):
        H = dense(operator).reshape(C, D, C, D)
        assert float((K * torch.einsum("sdtd->st", H)).sum()) == pytest.approx(known, rel=1e-12)


def test_without_norm_layers_a_relu_network_has_the_trace_of_its_gauss_newton_matrix() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = (nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, C))
        net = nn.Sequential(*parts).double()
    x, y = gaussian(N, 3), torch.arange(N) % C
    objective = Objective(net, CrossEntropy(), batches(x, y))
    H, G = dense(hessian(objective)), dense(gauss_newton(objective))
    assert float(H.trace()) == pytest.approx(float(G.trace()), rel=1e-12)
    assert float((H - G).norm()) > 0.01 * float(G.norm())  # they differ off the diagonal
    found = [measure_spectrum(op(objective), quantities=("trace",), max_products=400) for op in (hessian, gauss_newton)]
    for each in found:
        assert each.trace.low - 1e-12 <= float(H.trace()) <= each.trace.high + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_that_a_norm_layer_takes_out_again_has_curvature_zero(dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, C)).to(dtype)
    objective = Objective(net, CrossEntropy(), [(gaussian(N, 4).to(dtype), torch.arange(N) % C)], mode="frozen")
    block = restricted(hessian(objective), ["0.bias"])  # rounding noise only, so not even symmetric
    found = measure_spectrum(block, top=2)
    whole = measure_spectrum(hessian(objective), top=1, quantities=("top",))
    small = 1e4 * torch.finfo(dtype).eps * float(whole.top.values[0])
    assert float(found.top.values.abs().max()) < small
    assert abs(found.trace.value) < small


# T1: L = (w1 w2 - 1)^2 / 2 on the curve w1 w2 = 1, where H = [[w2^2, 1], [1, w1^2]].


class Factors(nn.Module):
    def __init__(self, first: float) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([first], dtype=torch.float64))
        self.second = nn.Parameter(torch.tensor([1 / first], dtype=torch.float64))


def factorisation(first: float) -> Objective:
    return Objective(Factors(first), lambda m, _: (m.first * m.second - 1).square().sum() / 2, [torch.zeros(1)])


@pytest.mark.parametrize("w1", [1.0, 2.0, 5.0])
def test_along_the_factorisation_raw_curvature_moves_and_invariants_stay(w1: float) -> None:
    objective = factorisation(w1)
    H, theta, moving = hessian(objective), objective.parameters(), w1**2 + w1**-2
    found = measure_spectrum(H, top=2, bottom=2)
    assert found.top.values.tolist() == pytest.approx([moving, 0], abs=1e-12 * moving)
    assert found.bottom.values.tolist() == pytest.approx([0, moving], abs=1e-12 * moving)
    assert found.trace.value == pytest.approx(moving, rel=1e-12)
    assert found.frobenius.value == pytest.approx(moving, rel=1e-12)
    assert found.negative_mass.value == pytest.approx(0, abs=1e-12)
    assert found.participation_ratio.value == pytest.approx(1, rel=1e-9)
    assert found.effective_rank.value == pytest.approx(1, rel=1e-9)
    # invariant under a rescaling of the two factors
    assert adaptive_trace(objective).value == pytest.approx(2, rel=1e-12)
    units = measure_spectrum(scaled(H, theta), top=2).top.values.tolist()
    assert units == pytest.approx([2, 0], abs=1e-12)
    assert directional_sharpness(objective, theta).curvature.value == pytest.approx(4, rel=1e-12)
    assert theta_hessian_theta(objective).value == pytest.approx(4, rel=1e-12)
    table = per_module(objective)
    assert [row.trace.value for row in table.rows] == pytest.approx([w1**-2, w1**2], rel=1e-12)
    assert table.orbit_minimal_trace.value == pytest.approx(2, rel=1e-12)  # smallest trace under rescaling
    blocks = [float(dense(restricted(H, [name]))) for name in ("first", "second")]
    assert blocks == pytest.approx([w1**-2, w1**2], rel=1e-12)
    inverse = theta.square().reciprocal()
    assert measure_spectrum(preconditioned(H, inverse), top=1).top.values.tolist() == pytest.approx([2], rel=1e-12)


@pytest.mark.parametrize("w1", [1.0, 2.0, 5.0])
def test_along_the_factorisation_only_perturbations_in_units_of_each_weight_stay(w1: float) -> None:
    objective, moving = factorisation(w1), w1**2 + w1**-2
    # no expansion: the loss is a polynomial of fourth order
    worst = worst_case_sharpness(objective, rho=0.3).sharpness.value
    assert worst == pytest.approx(((1 + 0.3 / math.sqrt(2)) ** 2 - 1) ** 2 / 2, rel=1e-3)
    average = average_sharpness(objective, rho=0.3, draws=64)
    assert average.low < 0.3**2 + 0.3**4 / 2 < average.high
    assert average.value == pytest.approx(average_sharpness(factorisation(1.0), rho=0.3, draws=64).value, rel=1e-9)
    filtered = low_pass_loss(objective, sigma=0.1, draws=64)
    assert filtered.low < (0.1**2 * moving + 0.1**4) / 2 < filtered.high
    sigma = pac_bayes_sigma(objective, rise=0.01, draws=64)
    assert sigma.low < math.sqrt((math.sqrt(moving**2 + 0.08) - moving) / 2) < sigma.high


# T2: quadratics with given eigenvalues.


def test_a_quadratic_gives_back_its_eigenvalues() -> None:
    found = measure_spectrum(hessian(quadratic(torch.tensor([4.0, 1.0, -1.0]))), top=3, bottom=3)
    assert found.top.values.tolist() == pytest.approx([4, 1, -1], rel=1e-12)
    assert found.bottom.values.tolist() == pytest.approx([-1, 1, 4], rel=1e-12)
    assert (found.trace.value, found.frobenius.value) == pytest.approx((4, math.sqrt(18)), rel=1e-12)
    assert found.negative_mass.value == pytest.approx(1 / 6, rel=1e-12)
    assert found.participation_ratio.value == pytest.approx(25 / 17, rel=1e-12)  # positive part
    p = np.array([0.8, 0.2])
    assert found.effective_rank.value == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-12)


@pytest.mark.parametrize(("n", "r"), [(9, 4), (100, 7)])
def test_equal_eigenvalues_count_as_their_number(n: int, r: int) -> None:
    eigenvalues = torch.cat([torch.ones(r), torch.zeros(n - r)])
    found = measure_spectrum(hessian(quadratic(eigenvalues)), top=2, max_products=400)
    for measured in (found.participation_ratio, found.effective_rank):
        assert measured.low - 1e-9 <= r <= measured.high + 1e-9
        assert measured.value == pytest.approx(r, rel=0.25)
    for alpha in (0.1, 1.0, 10.0):
        effective = found.density.effective_parameters(alpha)
        assert effective.low - 1e-9 <= r / (1 + alpha) <= effective.high + 1e-9
        assert effective.value == pytest.approx(r / (1 + alpha), rel=0.25)


def test_the_moments_of_the_density_are_trace_and_norm() -> None:
    eigenvalues = torch.linspace(-0.5, 3.0, 150).double() ** 3
    found = measure_spectrum(hessian(quadratic(eigenvalues)), max_products=600)
    nodes, weights = torch.as_tensor(found.density.nodes), torch.as_tensor(found.density.weights)
    assert found.density.size == 150
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))
    for power, truth in ((1, eigenvalues.sum()), (2, eigenvalues.square().sum())):
        samples = 150 * weights @ nodes**power
        error = 5 * samples.std() / len(samples) ** 0.5 + 1e-9 * truth.abs()
        assert abs(float(samples.mean() - truth)) <= float(error)
