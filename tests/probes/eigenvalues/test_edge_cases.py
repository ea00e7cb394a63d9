"""Stability thresholds against the iteration itself, and sharpness against closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.derived import preconditioned
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness import stability_thresholds as stability
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.norm_ball import norm_sharpness

LR, B, RHO = 0.05, 0.9, 0.3


# Each optimizer's update on the loss c x^2 / 2, as a linear map of its state (x, memory), written from its rule.
ITERATIONS: dict[str, tuple[Callable[[float], list[list[float]]], stability.Threshold]] = {
    "gradient descent": (lambda c: [[1 - LR * c]], stability.gradient_descent(LR)),
    # m <- b m + c x, x <- x - lr m
    "heavy ball": (lambda c: [[1 - LR * c, -LR * B], [c, B]], stability.heavy_ball(LR, B)),
    # m <- b m + (1 - d) c x
    "dampened": (
        lambda c: [[1 - LR * 0.5 * c, -LR * B], [0.5 * c, B]],
        stability.heavy_ball(LR, B, dampening=0.5),
    ),
    # m <- b m + (1 - b) c x
    "running mean": (lambda c: [[1 - LR * (1 - B) * c, -LR * B], [(1 - B) * c, B]], stability.ema_momentum(LR, B)),
    # m <- b m + c x, x <- x - lr (c x + b m)
    "Nesterov": (lambda c: [[1 - LR * c * (1 + B), -LR * B * B], [c, B]], stability.nesterov(LR, B)),
}


@pytest.mark.parametrize("name", ITERATIONS)
def test_an_iteration_contracts_below_its_threshold_and_grows_above(name: str) -> None:
    iteration, threshold = ITERATIONS[name]
    radius = [max(abs(np.linalg.eigvals(iteration(share * threshold.value)))) for share in (0.5, 0.999, 1, 1.001)]
    assert max(radius[:2]) < 1 < radius[3]
    assert radius[2] == pytest.approx(1, abs=1e-9)


def adam_radius(curvature: Tensor, metric: Tensor, beta: float) -> float:
    """Return the spectral radius of Adam with fixed second moments on the quadratic with this Hessian."""
    n = len(curvature)
    H, inverse, eye = curvature.numpy(), np.diag(1 / metric.numpy()), np.eye(n)
    memory = np.hstack([(1 - beta) * H, beta * eye])  # m <- b m + (1 - b) H x, from the state (x, m)
    moved = np.hstack([eye, np.zeros((n, n))]) - LR * inverse @ memory  # x <- x - lr m / P
    return float(max(abs(np.linalg.eigvals(np.vstack([moved, memory])))))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_frozen_adam_leaves_a_quadratic_at_38_over_its_learning_rate(seed: int) -> None:
    n = 6
    A = gaussian(n, n, seed=seed)
    curvature, metric = A @ A.mT + 0.1 * torch.eye(n), gaussian(n, seed=seed + 9).abs() + 0.1

    def sharpness(scale: float) -> float:
        net = nn.Linear(n, 1, bias=False).double()
        objective = Objective(net, lambda m, _: (m.weight @ curvature @ m.weight.mT).sum() * scale / 2, [torch.ones(1)])
        found = measure_spectrum(preconditioned(hessian(objective), metric), top=1, rel=1e-10, quantities=("top",))
        ratio = stability.edge_ratio(found.top.estimate(), stability.frozen_adam(LR, B))
        assert stability.frozen_adam(LR, B).value == pytest.approx(38 / LR)
        return ratio.value

    to_the_edge = 1 / sharpness(1.0)
    assert sharpness(to_the_edge) == pytest.approx(1, rel=1e-9)
    assert adam_radius(to_the_edge * 37.9 / 38 * curvature, metric, B) < 1
    assert adam_radius(to_the_edge * 38.1 / 38 * curvature, metric, B) > 1.01


@pytest.mark.parametrize("length", [1e-3, 0.4, 20.0])
def test_at_its_threshold_sam_jumps_to_the_mirror_image(length: float) -> None:
    curvature = stability.sam(LR, RHO, gradient_norm=length).value
    x = length / curvature  # where the gradient of c x^2 / 2 has this norm
    assert x - LR * curvature * (x + RHO) == pytest.approx(-x, rel=1e-9)


def test_at_its_threshold_a_normalized_step_jumps_to_the_mirror_image() -> None:
    curvature, threshold = 3.0, stability.normalized(LR).value
    x = 1 / threshold  # S / |g|_* = c / (c x) is at the threshold
    assert x - LR * np.sign(curvature * x) == pytest.approx(-x)


@pytest.mark.parametrize("w1", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("share", [0.9, 1.1])
def test_gradient_descent_stays_at_a_factorisation_that_is_flat_enough(w1: float, share: float) -> None:
    """L = (w1 w2 - 1)^2 / 2 has the sharpness w1^2 + w2^2 at its minima."""
    theta = torch.tensor([[w1, 1 / w1]], dtype=torch.float64)
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data.copy_(theta)
    objective = Objective(net, lambda m, _: (m.weight[0, 0] * m.weight[0, 1] - 1).square() / 2, [torch.ones(1)])
    found = measure_spectrum(hessian(objective), top=1).top.estimate()
    lr = 2 * share / (w1**2 + w1**-2)
    assert stability.edge_ratio(found, stability.gradient_descent(lr)).value == pytest.approx(share, rel=1e-9)
    point = (theta[0] + 1e-7 * theta[0].flip(0)).tolist()  # along the steepest direction
    begun = point[0] * point[1] - 1
    for _ in range(3):
        residual = point[0] * point[1] - 1
        point = [point[0] - lr * residual * point[1], point[1] - lr * residual * point[0]]
    assert (abs(point[0] * point[1] - 1) < abs(begun)) == (share < 1)


def test_a_step_of_gradient_descent_along_an_eigenvector_has_half_of_lr_times_its_eigenvalue() -> None:
    x, y = gaussian(30, 4), gaussian(30, 1, seed=1)
    net = nn.Linear(4, 1, bias=False).double()
    objective = Objective(net, MeanSquaredError(), [(x, y)])
    values, vectors = torch.linalg.eigh(2 / 30 * x.mT @ x)
    minimum = torch.linalg.lstsq(x, y).solution[:, 0]
    for eigenvalue, v in zip(values, vectors.mT, strict=True):
        at = minimum + 0.7 * v
        step = -LR * eigenvalue * 0.7 * v  # the gradient there is the eigenvalue times 0.7 v
        found = directional_sharpness(objective, step, at=at)
        assert found.edge_ratio.value == pytest.approx(LR * float(eigenvalue) / 2, rel=1e-9)
        line = stability.logged_step(LR)
        curvature = found.curvature.value / LR**2 / (-found.slope.value / LR)  # d'Hd / g'd
        assert curvature / line.value == pytest.approx(found.edge_ratio.value, rel=1e-9)


# T4: least squares. The gradient of one sample is a multiple of its input, its Hessian 2 x x'.


def least_squares(*sizes: int) -> tuple[Objective, Tensor, Tensor]:
    x, y = gaussian(sum(sizes), 4), gaussian(sum(sizes), 1, seed=1)
    net = nn.Linear(4, 1, bias=False).double()
    net.weight.data.copy_(gaussian(1, 4, seed=2))
    residual = (x @ net.weight.detach().mT - y)[:, 0]
    return Objective(net, MeanSquaredError(), list(zip(x.split(sizes), y.split(sizes), strict=True))), x, residual


def test_with_batches_of_one_the_batch_sharpness_of_least_squares_is_the_trace() -> None:
    objective, x, residual = least_squares(*[1] * 60)
    found, squares = batch_sharpness(objective), x.square().sum(1)
    trace = measure_spectrum(hessian(objective), quantities=("trace",)).trace.value
    assert found.mean_of_ratios.value == pytest.approx(2 * float(squares.mean()), rel=1e-12)
    assert found.mean_of_ratios.value == pytest.approx(trace, rel=1e-12)
    weights = 4 * residual.square() * squares  # |g_i|^2
    assert found.ratio_of_means.value == pytest.approx(float((weights * 2 * squares).sum() / weights.sum()), rel=1e-12)


def test_with_the_whole_data_in_each_batch_both_averages_are_one_rayleigh_quotient() -> None:
    objective, x, residual = least_squares(30)
    twice = Objective(objective.model, objective.loss_fn, list(objective.data.batches) * 4)
    g, H = 2 / 30 * x.mT @ residual, 2 / 30 * x.mT @ x
    rayleigh = float(g @ H @ g / (g @ g))
    found = batch_sharpness(twice)
    for estimate in (found.mean_of_ratios, found.ratio_of_means, found.noise_interaction):
        assert estimate.value == pytest.approx(rayleigh, rel=1e-10)
    assert rayleigh <= float(torch.linalg.eigvalsh(H)[-1])


def test_the_noise_interaction_covers_its_mean_over_all_pairs() -> None:
    covered = 0
    for seed in range(20):
        objective, x, residual = least_squares(*[2] * 40)
        order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
        x, y = x[order], (x @ objective.model.weight.detach().mT)[order] - residual[order][:, None]
        shuffled = Objective(objective.model, objective.loss_fn, list(zip(x.split(2), y.split(2), strict=True)))
        G = torch.stack([xb.mT @ rb for xb, rb in zip(x.split(2), residual[order].split(2), strict=True)])
        H, g = 2 / 80 * x.mT @ x, 2 / 80 * x.mT @ residual[order]
        truth = float(torch.einsum("bi,ij,bj->b", G, H, G).mean() / (g @ g))
        found = batch_sharpness(shuffled).noise_interaction
        covered += found.low <= truth <= found.high
    assert covered >= 17


# T5: for H[D] = A D B the maximum over the spectral unit ball is the sum of the products of sorted eigenvalues.


def semidefinite(n: int, seed: int) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return A @ A.mT


@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (5, 2)])
def test_the_spectral_sharpness_of_a_kronecker_product_pairs_its_eigenvalues(shape: tuple[int, int]) -> None:
    m, n = shape
    A, B = semidefinite(m, 1), semidefinite(n, 2)
    a, b = torch.linalg.eigvalsh(A).flip(0), torch.linalg.eigvalsh(B).flip(0)
    expected = float((a[: min(shape)] * b[: min(shape)]).sum())
    operator = from_matrix(torch.kron(A, B))
    found = norm_sharpness(
        operator, "spectral", shapes=[shape], rel=1e-9, max_products=4000, lambda_max=float(a[0] * b[0])
    )
    assert found.sharpness.value == pytest.approx(expected, rel=1e-6)
    assert found.sharpness.low <= expected * (1 + 1e-9) <= found.sharpness.high
    singular = torch.linalg.svdvals(found.direction.reshape(shape))
    assert float(singular.max()) <= 1 + 1e-9
    assert float(found.direction @ torch.kron(A, B) @ found.direction) == pytest.approx(expected, rel=1e-6)


def test_layers_without_coupling_add_up_in_the_spectral_norm() -> None:
    blocks = [torch.kron(semidefinite(3, 1), semidefinite(2, 2)), torch.kron(semidefinite(2, 3), semidefinite(2, 4))]
    shapes = [(3, 2), (2, 2)]
    parts = [
        norm_sharpness(from_matrix(H), shapes=[s], rel=1e-9, max_products=4000)
        for H, s in zip(blocks, shapes, strict=True)
    ]
    whole = norm_sharpness(from_matrix(torch.block_diag(*blocks)), shapes=shapes, rel=1e-9, max_products=4000)
    assert whole.sharpness.value == pytest.approx(sum(part.sharpness.value for part in parts), rel=1e-6)


def test_in_the_maximum_norm_a_diagonal_has_its_trace_and_any_matrix_its_largest_cut() -> None:
    diagonal = torch.tensor([3.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    assert norm_sharpness(from_matrix(torch.diag(diagonal)), "sign").sharpness.value == pytest.approx(5.5, rel=1e-12)
    A = gaussian(9, 9, seed=3)
    A = (A + A.mT) / 2 + torch.diag(gaussian(9, seed=4).abs())  # a diagonal >= 0 puts the maximum at a corner
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 9)
    largest = float(torch.einsum("ki,ij,kj->k", corners, A, corners).max())
    found = norm_sharpness(from_matrix(A), "sign", restarts=20, max_products=2000, rel=1e-9).sharpness
    assert found.value <= largest * (1 + 1e-12)
    assert found.value >= 0.9 * largest


def test_the_dual_norm_of_a_matrix_gradient_is_its_nuclear_norm() -> None:
    A, B, W = semidefinite(3, 1), semidefinite(4, 2), gaussian(3, 4, seed=3)
    net = nn.Linear(4, 3, bias=False).double()
    net.weight.data.copy_(W)
    objective = Objective(net, lambda m, _: (m.weight * (A @ m.weight @ B)).sum() / 2, [torch.ones(1)])
    found = norm_sharpness(objective, "spectral", max_products=400)
    nuclear = float(torch.linalg.svdvals(A @ W @ B).sum())
    assert found.dual_norm.value == pytest.approx(nuclear, rel=1e-10)
    assert found.ratio.value == pytest.approx(found.sharpness.value / nuclear, rel=1e-10)
    assert norm_sharpness(objective, "sign").dual_norm.value == pytest.approx(float((A @ W @ B).abs().sum()), rel=1e-10)
