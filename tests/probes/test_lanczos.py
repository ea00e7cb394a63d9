from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.lanczos import KrylovSpace, krylov_space
from lossscope.probes.operator import SymmetricOperator, from_matrix


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotated(eigenvalues: Tensor, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    n = len(eigenvalues)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64))
    A = (Q * eigenvalues.double()) @ Q.mT
    return ((A + A.mT) / 2).to(dtype)


def space_of(operator: SymmetricOperator, top: int = 1, bottom: int = 0, rel: float = 1e-3, **options) -> KrylovSpace:
    settings = {"max_products": 500, "generator": seeded(), "warm_start": None} | options
    return krylov_space(operator, top=top, bottom=bottom, rel=rel, **settings)


def test_both_ends_of_a_known_spectrum_are_found_from_one_space() -> None:
    values = torch.cat([torch.tensor([-3.0, -2.5]), torch.linspace(0, 1, 194), torch.tensor([5.0, 7.0, 9.0, 10.0])])
    space = space_of(from_matrix(rotated(values)), top=4, bottom=2, rel=1e-6)
    top, bottom = space.pairs(4, 1e-6, largest=True), space.pairs(2, 1e-6, largest=False)
    torch.testing.assert_close(top.values, torch.tensor([10.0, 9, 7, 5], dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(bottom.values, torch.tensor([-3.0, -2.5], dtype=torch.float64), rtol=1e-9, atol=0)
    assert top.converged.all()
    assert bottom.converged.all()
    assert len(space.basis) < 60
    torch.testing.assert_close(top.vectors.mT @ top.vectors, torch.eye(4, dtype=torch.float64))


def test_the_residual_is_the_true_one() -> None:
    A = rotated(torch.linspace(-1, 1, 100))
    pairs = space_of(from_matrix(A), top=3, max_products=12).pairs(3, 1e-3, largest=True)
    true = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-8, atol=1e-12)
    assert not pairs.converged.all()
    estimate = pairs.estimate(2)
    assert (estimate.low, estimate.high) == (
        float(pairs.values[2] - pairs.residuals[2]),
        float(pairs.values[2] + pairs.residuals[2]),
    )
    assert estimate.bound == "residual"
    assert np.isnan(estimate.stderr)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_ghosts_appear_when_going_on_long_after_convergence(dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.linspace(0, 1, 97), torch.tensor([50.0, 80.0, 100.0])]), dtype=dtype)
    space = space_of(from_matrix(A), top=3, rel=1e-30)
    assert len(space.basis) == 100
    pairs = space.pairs(100, 1e-3, largest=True)
    torch.testing.assert_close(
        pairs.values,
        torch.linalg.eigvalsh(A.double()).flip(0),
        rtol=1e-5,
        atol=2e-5 if dtype == torch.float32 else 1e-9,
    )
    eye = torch.eye(100, dtype=torch.float64)
    torch.testing.assert_close(space.basis @ space.basis.mT, eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_matrix_of_rank_three_has_three_eigenvalues_and_then_zeros(dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.tensor([3.0, 2.0, 1.0]), torch.zeros(47)]), dtype=dtype)
    space = space_of(from_matrix(A), top=5, bottom=5, rel=1e-4)
    top = space.pairs(5, 1e-4, largest=True)
    torch.testing.assert_close(top.values, torch.tensor([3.0, 2, 1, 0, 0], dtype=torch.float64), rtol=1e-6, atol=1e-5)
    assert float(space.pairs(5, 1e-4, largest=False).values.abs().max()) < 1e-5
    assert top.converged.all()
    assert len(space.basis) == 10


@pytest.mark.parametrize("A", [torch.eye(50), torch.eye(50).double(), torch.zeros(50, 50), 4 * torch.eye(1)])
def test_an_invariant_space_ends_the_search(A: Tensor) -> None:
    count = min(3, len(A))
    space = space_of(from_matrix(A), top=count, bottom=count)
    pairs = space.pairs(count, 1e-3, largest=True)
    torch.testing.assert_close(pairs.values, torch.full((count,), float(A[0, 0]), dtype=torch.float64))
    assert pairs.converged.all()
    assert len(space.basis) == min(2 * count, len(A))
    eye = torch.eye(len(space.basis), dtype=torch.float64)
    torch.testing.assert_close(space.basis @ space.basis.mT, eye, rtol=0, atol=1e-12)


def test_one_start_vector_sees_one_copy_of_a_double_eigenvalue() -> None:
    A = torch.diag(torch.cat([torch.tensor([5.0, 5.0]), torch.linspace(0, 1, 398)])).double()
    pairs = space_of(from_matrix(A), top=2, max_products=14).pairs(2, 1e-3, largest=True)
    assert float(pairs.values[0]) == pytest.approx(5, abs=1e-8)
    assert 0.9 < float(pairs.values[1]) < 1.01


def test_the_error_falls_with_the_budget() -> None:
    A = rotated(torch.linspace(0, 1, 400) ** 2)
    errors = []
    for budget in (10, 20, 40, 80):
        pairs = space_of(from_matrix(A), rel=1e-12, max_products=budget).pairs(1, 1e-12, largest=True)
        errors.append(1 - float(pairs.values[0]))
        assert len(pairs.vectors) == 400
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6 < errors[1]


def test_a_warm_start_saves_products_and_still_sees_what_overtook_it() -> None:
    n = 500
    values = torch.cat([torch.linspace(0, 4, n - 2), torch.tensor([4.6, 4.7])]).double()
    A = rotated(values)
    cold = space_of(from_matrix(A), rel=1e-3)
    old = cold.pairs(1, 1e-3, largest=True).vectors
    warm = space_of(from_matrix(A), rel=1e-3, warm_start=old[:, 0])
    assert len(warm.basis) <= 0.75 * len(cold.basis)
    jumped = torch.diag(torch.cat([torch.linspace(0, 1, n - 2), torch.tensor([9.0, 10.0])])).double()
    second = torch.eye(n, dtype=torch.float64)[:, n - 2 : n - 1]  # exactly the eigenvector of 9
    found = space_of(from_matrix(jumped), rel=1e-2, warm_start=second).pairs(1, 1e-2, largest=True)
    assert float(found.values[0]) == pytest.approx(10, abs=0.1)
    several = space_of(from_matrix(jumped), top=2, rel=1e-2, warm_start=torch.eye(n)[:, n - 2 :])
    torch.testing.assert_close(
        several.pairs(2, 1e-2, largest=True).values, torch.tensor([10.0, 9.0], dtype=torch.float64), rtol=1e-2, atol=0
    )


def test_a_warm_start_of_zeros_is_a_cold_one_and_a_bad_one_is_told() -> None:
    A = from_matrix(rotated(torch.linspace(0, 1, 40)))
    zero, cold = (space_of(A, warm_start=w).basis for w in (torch.zeros(40), None))
    torch.testing.assert_close(zero, cold)
    with pytest.raises(ProbeError, match=r"warm_start has shape \(39,\), need finite numbers \(40,\)"):
        space_of(A, warm_start=torch.ones(39))
    with pytest.raises(ProbeError, match="warm_start has shape"):
        space_of(A, warm_start=torch.full((40,), float("nan")))


@given(st.integers(2, 40), st.integers(0, 10**6), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_ritz_values_lie_inside_the_spectrum_and_residuals_certify_an_eigenvalue(
    n: int, seed: int, budget: int
) -> None:
    A = torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)
    A = (A + A.mT) / 2
    true = torch.linalg.eigvalsh(A)
    space = space_of(from_matrix(A), top=min(3, n), bottom=min(3, n), max_products=budget, generator=seeded(seed + 1))
    for largest in (True, False):
        pairs = space.pairs(3, 1e-3, largest=largest)
        assert float(pairs.values.max()) <= float(true[-1]) + 1e-10
        assert float(pairs.values.min()) >= float(true[0]) - 1e-10
        distance = (true[:, None] - pairs.values).abs().min(0).values
        assert bool((distance <= pairs.residuals + 1e-10).all())
        steps = pairs.values.diff()
        assert bool(((steps <= 0) if largest else (steps >= 0)).all())


def test_equal_seeds_give_equal_spaces() -> None:
    A = from_matrix(rotated(torch.linspace(0, 1, 60)))
    assert torch.equal(space_of(A).basis, space_of(A).basis)
    assert not torch.equal(space_of(A).basis[:1], space_of(A, generator=seeded(1)).basis[:1])
