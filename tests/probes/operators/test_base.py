from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator, asymmetry, from_matrix
from lossscope.probes.operators.derived import preconditioned, scaled
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator


def symmetric(n: int, seed: int = 0) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return (A + A.mT) / 2


def own(A: Tensor, dtype: torch.dtype = torch.float64) -> SymmetricOperator:
    """Return an operator with a user's own product."""
    return SymmetricOperator(len(A), lambda V: A.to(V) @ V, dtype=dtype, device=torch.device("cpu"))


def test_a_dense_matrix_multiplies_and_counts() -> None:
    A = symmetric(5)
    operator = from_matrix(A)
    torch.testing.assert_close(operator @ gaussian(5), A @ gaussian(5))
    torch.testing.assert_close(operator @ gaussian(5, 3), A @ gaussian(5, 3))
    assert operator.products == 4
    with operator.cached():
        assert (operator @ np_ones()).dtype == torch.float64


def np_ones() -> Tensor:
    return torch.from_numpy(np.ones(5, dtype=np.float32))


def test_a_scaled_operator_is_d_a_d() -> None:
    A, d = symmetric(5), gaussian(5, seed=4)
    inner = from_matrix(A)
    found = scaled(inner, d) @ torch.eye(5)
    torch.testing.assert_close(found, d[:, None] * A * d)
    assert inner.products == 5


def test_an_operator_without_an_objective_has_the_default_properties() -> None:
    matrix, user = from_matrix(symmetric(4)), own(symmetric(4), torch.float32)
    assert (matrix.method, user.method) == ("matrix", "own product")
    assert (matrix.unit, user.unit) == (torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps)
    for operator in (matrix, user, scaled(user, torch.ones(4))):
        assert math.isnan(operator.gradient_seconds)
        assert not isinstance(operator, ObjectiveOperator)
    assert scaled(matrix, torch.ones(4)).method == "matrix"


def test_scaling_the_hessian_of_an_objective_keeps_its_names_but_not_that_it_is_the_hessian(make_case: Any) -> None:
    H = hessian(make_case("mlp").objective())
    for operator in (scaled(H, torch.ones(H.size)), preconditioned(H, torch.ones(H.size))):
        assert isinstance(operator, ObjectiveOperator)
        assert (operator.objective, operator.names) == (H.objective, H.names)
        assert (H.is_hessian, operator.is_hessian) == (True, False)
        assert operator.method == "reverse"


def test_scaled_operators_share_the_cache() -> None:
    entered: list[str] = []

    @contextmanager
    def cached() -> Iterator[None]:
        entered.append("cached")
        yield

    operator = SymmetricOperator(2, lambda V: V, dtype=torch.float32, device=torch.device("cpu"), cached=cached)
    for context in (operator.cached(), scaled(operator, torch.ones(2)).cached()):
        with context:
            pass
    assert len(entered) == 2


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_preconditioned_operator_has_the_eigenvalues_of_p_inverse_a(seed: int) -> None:
    A, p = symmetric(6, seed), gaussian(6, seed=seed + 1).square() + 0.1
    found = torch.linalg.eigvalsh(preconditioned(from_matrix(A), p) @ torch.eye(6, dtype=torch.float64))
    expected = torch.linalg.eigvals(A / p[:, None]).real.sort().values
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_diagonal_that_is_no_metric_is_refused() -> None:
    operator = from_matrix(symmetric(3))
    with pytest.raises(ProbeError, match=r"diagonal must have shape \(3,\), got \(2,\)"):
        preconditioned(operator, torch.ones(2))
    with pytest.raises(ProbeError, match="diagonal must be finite and positive, got a smallest entry of 0"):
        preconditioned(operator, torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(ProbeError, match="diagonal must be finite and positive, got entries that are not finite"):
        preconditioned(operator, torch.tensor([1.0, math.nan, 2.0]))


def test_asymmetry_is_rounding_for_a_symmetric_matrix_and_larger_for_another() -> None:
    A = symmetric(40)
    assert asymmetry(own(A), seed=0) < 1e-14
    assert asymmetry(own(A, torch.float32), seed=0) < 1e-6
    bent = A.clone()
    bent[3] *= 1.5
    assert all(asymmetry(own(bent), seed=seed) > 1e-3 for seed in range(5))
    assert asymmetry(own(torch.zeros(4, 4)), seed=0) == 0.0
    assert own(A).products == 0


def test_a_product_that_writes_into_its_argument_reaches_nobody() -> None:
    A = SymmetricOperator(5, lambda V: V.mul_(2), dtype=torch.float64, device=torch.device("cpu"))
    V = gaussian(5, 2)
    before = V.clone()
    assert torch.equal(A @ V, 2 * before)
    assert torch.equal(V, before)
    assert measure_spectrum(A, quantities=("trace",)).trace.value == pytest.approx(10, rel=1e-12)
    assert torch.equal(scaled(A, torch.ones(5)) @ V, 2 * before)


def test_scipy_gets_numbers_that_it_knows() -> None:
    A = from_matrix(torch.diag(torch.arange(1.0, 9)).bfloat16()).to_scipy()
    assert A.dtype == np.float32
    assert (A @ np.ones(8, dtype=np.float32)).tolist() == list(range(1, 9))


def test_a_product_of_another_type_or_shape_is_refused() -> None:
    def operator(product: object) -> SymmetricOperator:
        return SymmetricOperator(3, product, dtype=torch.float32, device=torch.device("cpu"))  # type: ignore[arg-type]

    with pytest.raises(ProbeError, match=r"must return a tensor of the shape \(3, 2\) it is given, got shape \(2, 3\)"):
        operator(lambda V: V.mT) @ torch.ones(3, 2)
    with pytest.raises(ProbeError, match=r"must return a tensor of the shape \(3, 1\) it is given, got ndarray"):
        operator(lambda V: V.numpy()) @ torch.ones(3)
    with pytest.raises(ProbeError, match="size must be at least 1, got 0"):
        SymmetricOperator(0, lambda V: V, dtype=torch.float32, device=torch.device("cpu"))


def test_large_finite_products_pass_and_infinite_ones_do_not() -> None:
    huge = torch.full((4,), 3e38)
    assert bool((own(torch.eye(4), torch.float32) @ huge == huge).all())  # though their sum overflows
    for bad in (math.inf, -math.inf, math.nan):
        with pytest.raises(ProbeError, match="product 1 with the operator is not finite"):
            own(torch.eye(4), torch.float32) @ torch.tensor([1.0, bad, 1.0, 1.0])


def test_matrices_and_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ProbeError, match="differs from its transpose by 1 where its largest entry is 1"):
        from_matrix(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ProbeError, match=r"A must be a real .*, got torch.float32 of shape \(2, 3\)"):
        from_matrix(torch.ones(2, 3))
    with pytest.raises(ProbeError, match=r"A must be .*, got torch.int64"):
        from_matrix(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ProbeError, match="differs from its transpose by nan"):
        from_matrix(torch.full((2, 2), float("nan")))
    with pytest.raises(ProbeError, match=r"V must have shape \(2,\) or \(2, k\), got \(3,\)"):
        from_matrix(torch.eye(2)) @ torch.ones(3)
    with pytest.raises(ProbeError, match=r"diagonal must have shape \(2,\), got \(3,\)"):
        scaled(from_matrix(torch.eye(2)), torch.ones(3))
    broken = SymmetricOperator(2, lambda V: V / 0, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ProbeError, match="product 1 with the operator is not finite"):
        broken @ torch.ones(2)


def test_a_gram_matrix_with_rounding_is_let_through() -> None:
    X = gaussian(200, 30).float()
    A = X.mT @ X
    A[0, 1] *= 1 + 1e-6
    assert from_matrix(A).size == 30
