from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.norm_ball import Norm, dual_norm, norm_sharpness
from lossscope.probes.sharpness.stability_thresholds import edge_ratio, normalized


def symmetric(n: int, seed: int = 0) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return A + A.mT


def semidefinite(n: int, seed: int = 0) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return A @ A.mT


def network() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(net, CrossEntropy(), [(gaussian(n, 4, seed=n), torch.arange(n) % 3) for n in (9, 4)])


def length(d: Tensor, norm: Norm, shapes: list[tuple[int, ...]]) -> float:
    """Compute the norm of a step from its definition."""
    if norm == "sign":
        return float(d.abs().max())
    parts = torch.split(d, [math.prod(shape) for shape in shapes])
    return max(
        float(torch.linalg.matrix_norm(p.reshape(s[0], -1), 2) if len(s) > 1 else p.norm())
        for p, s in zip(parts, shapes, strict=True)
    )


def test_a_diagonal_hessian_has_its_trace_as_sharpness_in_the_maximum_norm() -> None:
    spectrum = torch.arange(50, dtype=torch.float64)
    found = norm_sharpness(from_matrix(torch.diag(spectrum)), "sign", lambda_max=49.0)
    assert found.sharpness.value == pytest.approx(49 * 50 / 2, rel=1e-14)
    assert found.sharpness.bound == "lower bound"
    assert found.sharpness.value * (1 - 1e-12) < found.sharpness.low <= found.sharpness.value  # rounding
    assert found.sharpness.high == 50 * 49.0
    assert found.sharpness.converged


@pytest.mark.parametrize("seed", range(3))
def test_the_best_corner_of_a_small_cube_is_found(seed: int) -> None:
    A = semidefinite(10, seed)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    best = float(torch.einsum("ki,ij,kj->k", corners, A, corners).max())
    found = norm_sharpness(from_matrix(A), "sign", restarts=40, rel=1e-9, max_products=1000)
    assert found.sharpness.value == pytest.approx(best, rel=1e-12)
    assert found.restarts[-1] < best  # a single ascent may end elsewhere, hence the restarts


@pytest.mark.parametrize("shape", [(7, 7), (7, 4), (3, 8)])
def test_a_kronecker_hessian_has_the_sorted_product_of_eigenvalues_in_the_spectral_norm(shape: tuple[int, int]) -> None:
    """Fixture T5: H[D] = A D B, where the singular vectors of the best D are the eigenvectors of A and B."""
    m, n = shape
    A, B = semidefinite(m, 1), semidefinite(n, 2)
    eigenvalues = [torch.linalg.eigvalsh(M).flip(0)[: min(m, n)] for M in (A, B)]
    operator = from_matrix(torch.kron(A, B))  # acts on D row by row
    found = norm_sharpness(operator, "spectral", shapes=[shape], rel=1e-9, max_products=2000)
    assert found.sharpness.value == pytest.approx(float(eigenvalues[0] @ eigenvalues[1]), rel=1e-6)
    D = found.direction.reshape(shape)
    assert torch.allclose(torch.linalg.svdvals(D), torch.ones(min(m, n), dtype=torch.float64), atol=1e-9)


def test_a_ball_of_vectors_has_the_largest_eigenvalue_as_its_sharpness() -> None:
    A = semidefinite(12)
    found = norm_sharpness(from_matrix(A), "spectral", shapes=[(12,)], rel=1e-12, max_products=5000)
    assert found.sharpness.value == pytest.approx(float(torch.linalg.eigvalsh(A)[-1]), rel=1e-6)


def test_layers_that_do_not_interact_add_up() -> None:
    A, B = semidefinite(6, 1), semidefinite(4, 2)
    both = from_matrix(torch.block_diag(A, B))
    for norm, shapes in (("sign", [(6,), (4,)]), ("spectral", [(3, 2), (4,)])):
        parts = [
            norm_sharpness(from_matrix(M), norm, shapes=[s], restarts=30, rel=1e-10, max_products=6000).sharpness.value
            for M, s in zip((A, B), shapes, strict=True)
        ]
        whole = norm_sharpness(both, norm, shapes=shapes, restarts=30, rel=1e-10, max_products=6000)
        assert whole.sharpness.value == pytest.approx(sum(parts), rel=1e-6)


@given(seed=st.integers(0, 10**6), norm=st.sampled_from(["sign", "spectral"]), definite=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_value_is_reached_inside_the_ball_and_below_the_upper_end(seed: int, norm: Norm, definite: bool) -> None:
    A = semidefinite(11, seed) if definite else symmetric(11, seed)
    shapes: list[tuple[int, ...]] = [(2, 2, 2), (3,)]
    largest = float(torch.linalg.eigvalsh(A)[-1])
    found = norm_sharpness(from_matrix(A), norm, shapes=shapes, restarts=3, lambda_max=largest, max_products=60)
    d = found.direction
    assert length(d, norm, shapes) <= 1 + 1e-12
    assert found.sharpness.value == pytest.approx(float(d @ A @ d), rel=1e-9)
    assert found.restarts[0] == pytest.approx(found.sharpness.value, rel=1e-12)
    assert list(found.restarts) == sorted(found.restarts, reverse=True)
    assert found.sharpness.low <= found.sharpness.value <= found.sharpness.high * (1 + 1e-12)
    assert found.sharpness.products <= 60


@pytest.mark.parametrize("norm", ["sign", "spectral"])
def test_more_products_never_reach_less(norm: Norm) -> None:
    operator = from_matrix(symmetric(40))
    values = [
        norm_sharpness(operator, norm, shapes=[(8, 5)], restarts=4, rel=1e-6, max_products=budget)
        for budget in (8, 16, 32, 64, 400)
    ]
    numbers = [found.sharpness.value for found in values]
    assert numbers == sorted(numbers)
    assert numbers[0] < numbers[-1]
    assert [found.sharpness.converged for found in (values[0], values[-1])] == [False, True]


def test_a_hessian_that_is_not_definite_is_climbed_past_its_corners() -> None:
    A = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    found = norm_sharpness(from_matrix(A), "sign", rel=1e-6)
    assert found.sharpness.value == pytest.approx(1.0, abs=1e-9)  # every corner of the cube gives -1
    negative = norm_sharpness(from_matrix(-semidefinite(8)), "sign", restarts=1, max_products=2)
    assert negative.restarts[0] < 0
    assert negative.sharpness.value == 0.0  # the ball contains the step of length 0
    assert not negative.direction.any()
    assert not negative.sharpness.converged


@pytest.mark.parametrize(("norm", "squared"), [("sign", 15), ("spectral", 2 + 2 + 1)])
def test_the_identity_reaches_half_of_an_upper_end_that_is_twice_too_high(norm: Norm, squared: int) -> None:
    shapes = [(2, 3), (2, 1, 3), (3,)]
    found = norm_sharpness(from_matrix(torch.eye(15)), norm, shapes=shapes, lambda_max=2.0).sharpness
    assert found.value == pytest.approx(squared, rel=1e-6)
    assert found.high == 2 * squared


def test_the_dual_norm_is_the_largest_slope_within_the_ball() -> None:
    g = gaussian(10)
    shapes = [(3, 2), (4,)]
    assert dual_norm(g, "sign", shapes) == pytest.approx(float(g.abs().sum()), rel=1e-14)
    nuclear = float(torch.linalg.svdvals(g[:6].reshape(3, 2)).sum() + g[6:].norm())
    assert dual_norm(g, "spectral", shapes) == pytest.approx(nuclear, rel=1e-12)
    kernel = gaussian(2, 3, 2, 2)
    matrix = float(torch.linalg.svdvals(kernel.reshape(2, 12)).sum())
    assert dual_norm(kernel.flatten(), "spectral", [kernel.shape]) == pytest.approx(matrix, rel=1e-12)
    assert dual_norm(torch.zeros(4), "spectral", [(2, 2)]) == 0.0
    for d in (gaussian(10, seed=s) for s in range(20)):
        for norm in ("sign", "spectral"):
            assert float(g @ d) <= dual_norm(g, norm, shapes) * length(d, norm, shapes) * (1 + 1e-12)
    with pytest.raises(ProbeError, match="shapes must have 10 entries in total, got 6"):
        dual_norm(g, "spectral", [(3, 2)])


@pytest.mark.parametrize("norm", ["sign", "spectral"])
def test_the_ratio_of_a_loss_is_that_of_its_dense_hessian_and_gradient(norm: Norm) -> None:
    objective = network()
    shapes = [tuple(p.shape) for p in objective.vector.tensors()]
    dense = from_matrix(hessian(objective) @ torch.eye(objective.size, dtype=torch.float64))
    found, expected = norm_sharpness(objective, norm), norm_sharpness(dense, norm, shapes=shapes)
    assert found.sharpness.value == pytest.approx(expected.sharpness.value, rel=1e-9)
    slope = dual_norm(objective.gradient(), norm, shapes)
    assert found.dual_norm.value == pytest.approx(slope, rel=1e-12)
    assert found.ratio.value == pytest.approx(expected.sharpness.value / slope, rel=1e-9)
    assert found.ratio.bound == "lower bound"
    assert math.isnan(found.sharpness.high)
    assert edge_ratio(found.ratio, normalized(0.1)).value == pytest.approx(found.ratio.value / 20, rel=1e-12)
    assert math.isnan(expected.dual_norm.value)
    assert math.isnan(expected.ratio.value)
    shared = norm_sharpness(hessian(objective), norm)
    assert shared.ratio.value == pytest.approx(found.ratio.value, rel=1e-9)


def test_equal_seeds_give_equal_numbers() -> None:
    operator = from_matrix(symmetric(20))
    values = [norm_sharpness(operator, "sign", restarts=2, seed=seed).restarts for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_bad_arguments_are_told() -> None:
    operator = from_matrix(torch.eye(4))
    for arguments, message in (
        ({"norm": "nuclear"}, "norm must be one of .*, got 'nuclear'"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"rel": 0.0}, "rel must be between 0 and 1, got 0"),
        ({"max_products": 19}, "max_products must be at least 20 for 10 restarts, got 19"),
        ({"norm": "spectral"}, r"requires shapes=\[...\] of its tensors"),
        ({"shapes": [(2, 3)]}, "shapes must have 4 entries in total, got 6"),
    ):
        with pytest.raises(ProbeError, match=message):
            norm_sharpness(operator, **{"norm": "sign", **arguments})  # type: ignore[arg-type]
