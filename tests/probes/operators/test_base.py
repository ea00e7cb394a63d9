from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator, asymmetry, from_matrix, preconditioned, scaled
from lossscope.probes.spectrum.measure import measure_spectrum


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(n: int, seed: int = 0) -> Tensor:
    A = gaussian(n, n, seed=seed)
    return (A + A.mT) / 2


def own(A: Tensor, dtype: torch.dtype = torch.float64) -> SymmetricOperator:
    """An operator of a user's own product."""
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


def test_what_is_known_of_a_plain_product_is_little() -> None:
    matrix, user = from_matrix(symmetric(4)), own(symmetric(4), torch.float32)
    assert (matrix.method, user.method) == ("matrix", "own product")
    assert (matrix.unit, user.unit) == (torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps)
    for operator in (matrix, user, scaled(user, torch.ones(4))):
        assert operator.width == 1
        assert math.isnan(operator.gradient_seconds)
        assert (operator.objective, operator.hessian_of, operator.choice, operator.restrict) == (None,) * 4
    assert scaled(matrix, torch.ones(4)).method == "matrix"


def test_a_held_context_is_told_how_many_products_to_expect() -> None:
    from contextlib import nullcontext

    told: list[int | None] = []

    def cached(expected: int | None) -> nullcontext[None]:
        told.append(expected)
        return nullcontext()

    operator = SymmetricOperator(2, lambda V: V, dtype=torch.float32, device=torch.device("cpu"), cached=cached)
    for context in (operator.cached(), operator.cached(expected=7), scaled(operator, torch.ones(2)).cached(9)):
        with context:
            pass
    assert told == [None, 7, 9]


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_a_preconditioned_operator_has_the_eigenvalues_of_p_inverse_a(seed: int) -> None:
    A, p = symmetric(6, seed), gaussian(6, seed=seed + 1).square() + 0.1
    found = torch.linalg.eigvalsh(preconditioned(from_matrix(A), p) @ torch.eye(6, dtype=torch.float64))
    expected = torch.linalg.eigvals(A / p[:, None]).real.sort().values
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_a_diagonal_that_is_no_metric_is_told() -> None:
    operator = from_matrix(symmetric(3))
    with pytest.raises(ProbeError, match=r"the diagonal has shape \(2,\), need 3 positive numbers"):
        preconditioned(operator, torch.ones(2))
    with pytest.raises(ProbeError, match="the diagonal goes down to 0, need finite numbers above 0"):
        preconditioned(operator, torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(ProbeError, match="the diagonal is not finite"):
        preconditioned(operator, torch.tensor([1.0, math.nan, 2.0]))


def test_asymmetry_is_rounding_for_a_symmetric_matrix_and_seen_for_another() -> None:
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


def test_a_product_that_comes_back_as_something_else_is_told() -> None:
    def operator(product: object) -> SymmetricOperator:
        return SymmetricOperator(3, product, dtype=torch.float32, device=torch.device("cpu"))  # type: ignore[arg-type]

    with pytest.raises(ProbeError, match=r"columns \(3, 2\) came back as shape \(2, 3\), need the same shape"):
        operator(lambda V: V.mT) @ torch.ones(3, 2)
    with pytest.raises(ProbeError, match=r"columns \(3, 1\) came back as ndarray, need the same shape"):
        operator(lambda V: V.numpy()) @ torch.ones(3)
    with pytest.raises(ProbeError, match="an operator of size 0 has no spectrum, need at least 1"):
        SymmetricOperator(0, lambda V: V, dtype=torch.float32, device=torch.device("cpu"))


def test_large_finite_products_pass_and_infinite_ones_do_not() -> None:
    huge = torch.full((4,), 3e38)
    assert bool((own(torch.eye(4), torch.float32) @ huge == huge).all())  # though their sum overflows
    for bad in (math.inf, -math.inf, math.nan):
        with pytest.raises(ProbeError, match="product 1 with the operator is not finite"):
            own(torch.eye(4), torch.float32) @ torch.tensor([1.0, bad, 1.0, 1.0])


def test_matrices_and_vectors_that_do_not_fit_are_told() -> None:
    with pytest.raises(ProbeError, match="differs from its transpose by 1 where its largest entry is 1"):
        from_matrix(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(ProbeError, match=r"A is torch.float32 of shape \(2, 3\)"):
        from_matrix(torch.ones(2, 3))
    with pytest.raises(ProbeError, match=r"A is torch.int64"):
        from_matrix(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ProbeError, match="differs from its transpose by nan"):
        from_matrix(torch.full((2, 2), float("nan")))
    with pytest.raises(ProbeError, match=r"shape \(3,\) cannot be multiplied: need \(2,\)"):
        from_matrix(torch.eye(2)) @ torch.ones(3)
    with pytest.raises(ProbeError, match=r"the diagonal has shape \(3,\), need 2 finite numbers"):
        scaled(from_matrix(torch.eye(2)), torch.ones(3))
    broken = SymmetricOperator(2, lambda V: V / 0, dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ProbeError, match="product 1 with the operator is not finite"):
        broken @ torch.ones(2)


def test_a_gram_matrix_with_rounding_is_let_through() -> None:
    X = gaussian(200, 30).float()
    A = X.mT @ X
    A[0, 1] *= 1 + 1e-6
    assert from_matrix(A).size == 30
