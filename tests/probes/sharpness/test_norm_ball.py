from __future__ import annotations

import itertools
import math
from typing import Any

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
from lossscope.probes.statistics.estimate import exact_estimate


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


RADII = (3.0, 0.5)


@pytest.mark.parametrize(("norm", "shapes"), [("sign", [(6,), (4,)]), ("spectral", [(3, 2), (2, 2)])])
def test_radii_are_a_scale_of_each_tensor(norm: Norm, shapes: list[tuple[int, ...]]) -> None:
    """The ball with radii r is the unit ball of the parameters d / r, in which the Hessian is R H R."""
    A, g = symmetric(10), gaussian(10, seed=5)
    sizes = [math.prod(s) for s in shapes]
    r = torch.repeat_interleave(torch.tensor(RADII, dtype=torch.float64), torch.tensor(sizes))
    settings: dict[str, Any] = {"shapes": shapes, "restarts": 5, "max_products": 100, "lambda_max": 1.0}
    found = norm_sharpness(from_matrix(A), norm, radii=RADII, **settings)
    scaled = norm_sharpness(from_matrix(r[:, None] * A * r), norm, **settings)
    assert found.sharpness.value == pytest.approx(scaled.sharpness.value, rel=1e-6)
    parts = zip(torch.split(found.direction, sizes), shapes, RADII, strict=True)
    assert max(length(d, norm, [s]) / radius for d, s, radius in parts) == pytest.approx(1)
    assert dual_norm(g, norm, shapes, RADII) == pytest.approx(dual_norm(r * g, norm, shapes))
    same = norm_sharpness(from_matrix(A), norm, radii=(1.0, 1.0), **settings)
    assert same.sharpness.value == norm_sharpness(from_matrix(A), norm, **settings).sharpness.value


def test_radii_enter_the_closed_forms_squared() -> None:
    spectrum = torch.arange(1.0, 11, dtype=torch.float64)
    found = norm_sharpness(from_matrix(torch.diag(spectrum)), "sign", shapes=[(6,), (4,)], radii=RADII, lambda_max=10.0)
    assert found.sharpness.value == pytest.approx(9 * 21 + 34 / 4, rel=1e-12)
    assert found.sharpness.high == pytest.approx(10 * (9 * 6 + 4 / 4))
    A, B = semidefinite(7, 1), semidefinite(4, 2)
    eigenvalues = [torch.linalg.eigvalsh(M).flip(0)[:4] for M in (A, B)]
    found = norm_sharpness(
        from_matrix(torch.kron(A, B)), "spectral", shapes=[(7, 4)], radii=[1.5], rel=1e-9, max_products=2000
    )
    assert found.sharpness.value == pytest.approx(1.5**2 * float(eigenvalues[0] @ eigenvalues[1]), rel=1e-6)
    assert dual_norm(torch.tensor([3.0, 0.0, 0.0, -4.0]), "spectral", [(2, 2)], [2.0]) == 14.0


@pytest.mark.parametrize(("share", "rises"), [(1.02, False), (0.98, True)])
def test_muon_with_the_factor_of_each_matrix_raises_the_loss_exactly_above_its_threshold(
    share: float, rises: bool
) -> None:
    """Steps of lr sqrt(max(1, rows / columns)) polar(g) on a quadratic whose gradient is orthogonal in each layer."""
    shapes, lr, curvature = [(8, 2), (3, 3), (2, 6)], 0.1, 2.0
    radii = [math.sqrt(max(1.0, m / n)) for m, n in shapes]
    assert radii[0] == 2.0
    weights = [torch.linalg.qr(gaussian(m, n, seed=m) if m >= n else gaussian(n, m, seed=m))[0] for m, n in shapes]
    weights = [w if w.shape == torch.Size(s) else w.mT for w, s in zip(weights, shapes, strict=True)]
    theta = torch.cat([share * lr / 2 * r * w.reshape(-1) for w, r in zip(weights, radii, strict=True)])
    size = len(theta)
    found = norm_sharpness(from_matrix(curvature * torch.eye(size)), "spectral", shapes=shapes, radii=radii)
    assert found.sharpness.value == pytest.approx(
        curvature * sum(r**2 * min(s) for r, s in zip(radii, shapes, strict=True))
    )
    slope = dual_norm(curvature * theta, "spectral", shapes, radii)
    ratio = edge_ratio(exact_estimate(found.sharpness.value / slope), normalized(lr))
    assert (ratio.value > 1) is rises
    after = theta - lr * torch.cat([r * w.reshape(-1) for w, r in zip(weights, radii, strict=True)])
    assert (float(after @ after) > float(theta @ theta)) is rises


def test_radii_of_an_objective_are_those_of_its_tensors() -> None:
    objective = network()
    found = norm_sharpness(objective, "spectral", radii=[2.0, 1.0, 1.0, 1.0], restarts=3, max_products=60)
    shapes = [p.shape for p in objective.model.parameters()]
    right = dual_norm(objective.gradient(), "spectral", shapes, [2.0, 1.0, 1.0, 1.0])
    assert found.dual_norm.value == pytest.approx(right, rel=1e-12)
    plain = norm_sharpness(objective, "spectral", restarts=3, max_products=60)
    assert plain.sharpness.value < found.sharpness.value < 4 * plain.sharpness.value


@pytest.mark.parametrize(
    ("radii", "words"),
    [
        ([1.0], "radii must have one entry for each of the 2 tensors, got 1"),
        ([1.0, 0.0], "radii must be finite and above 0, got 0"),
        ([1.0, math.nan], "radii must be finite and above 0, got nan"),
    ],
)
def test_radii_that_fit_no_tensor_are_rejected(radii: list[float], words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        norm_sharpness(from_matrix(symmetric(10)), "sign", shapes=[(6,), (4,)], radii=radii)
    with pytest.raises(ProbeError, match=words):
        dual_norm(torch.ones(10), "spectral", [(6,), (4,)], radii)


def test_radii_without_shapes_are_rejected() -> None:
    with pytest.raises(ProbeError, match=r"radii of an operator without an objective requires shapes=\[...\]"):
        norm_sharpness(from_matrix(symmetric(4)), "sign", radii=[1.0])


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
