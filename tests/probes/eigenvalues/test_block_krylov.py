from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from helpers import gaussian, generator
from lossscope.probes.eigenvalues.block_krylov import BlockKrylov
from lossscope.probes.errors import ProbeError
from lossscope.probes.operators.base import SymmetricOperator, from_matrix

DTYPES = [torch.float64, torch.float32]


def rotated(eigenvalues: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    n = len(eigenvalues)
    Q, _ = torch.linalg.qr(gaussian(n, n, seed=77))
    A = (Q * eigenvalues.double()) @ Q.mT
    return ((A + A.mT) / 2).to(dtype)


def space_of(A: Tensor, width: int = 1, seed: int = 0) -> BlockKrylov:
    return BlockKrylov(from_matrix(A), gaussian(width, len(A), seed=seed), generator(seed + 1))


def grown(A: Tensor, dimension: int, width: int = 1, seed: int = 0) -> BlockKrylov:
    space = space_of(A, width, seed)
    while space.dimension < dimension:
        space.step(dimension - space.dimension)
    return space


def assert_is_a_krylov_relation(space: BlockKrylov, A: Tensor) -> None:
    """Assert the Krylov relation to rounding of the space's dtype, relative to the norm of A."""
    eps = 300 * torch.finfo(A.dtype).eps
    A, Q, images = A.double(), space.basis.double(), space.images.double()
    scale = max(float(torch.linalg.matrix_norm(A, 2)), 1e-100)
    T, C = torch.from_numpy(space.projected), torch.from_numpy(space.coupling)
    eye = torch.eye(len(Q), dtype=torch.float64)
    assert float((Q @ Q.mT - eye).abs().max()) < eps
    assert float((images - Q @ A).abs().max()) < eps * scale
    assert float((T - Q @ A @ Q.mT).abs().max()) < eps * scale
    assert C.shape == (space.width, space.dimension)
    left = A @ Q.mT - Q.mT @ T  # = Q_+ C with orthonormal columns Q_+
    assert float((left.mT @ left - C.mT @ C).abs().max()) < eps * scale**2


def stepped(space: BlockKrylov, A: Tensor, at_most: int) -> None:
    """Take one step and check that the coupling relates the new block to the old ones."""
    before, C = space.dimension, space.coupling.copy()
    space.step(at_most)
    assert_is_a_krylov_relation(space, A)
    new = space.dimension - before
    if len(C):
        scale = max(float(torch.linalg.matrix_norm(A.double(), 2)), 1e-100)
        assert abs(space.projected[before:, :before] - C[:new]).max(initial=0) < 300 * torch.finfo(A.dtype).eps * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_basis_is_orthonormal_and_what_leaves_the_space_is_the_coupling(width: int, dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.linspace(-1, 2, 57), torch.tensor([10.0, 20.0, -7.0])]), dtype)
    space = space_of(A, width)
    for steps in range(1, 15):
        stepped(space, A, width)
        assert (space.dimension, space.steps, space.width) == (steps * width, steps, width)
    assert space.projected.dtype == space.coupling.dtype == "float64"
    assert space.basis.dtype == space.images.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(1, 3, 3), (2, 1, 3, 3), (3, 2, 2, 2, 1, 3), (1, 1, 1, 1, 1, 1, 1)])
def test_blocks_cut_by_the_budget_keep_the_relation(cuts: tuple[int, ...], dtype: torch.dtype) -> None:
    A = rotated(torch.linspace(-1, 2, 40), dtype)
    space = space_of(A, 3)
    for cut in cuts:
        before = space.dimension
        stepped(space, A, cut)
        assert before < space.dimension <= before + cut


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_space_that_has_closed_goes_on_with_a_random_vector(width: int, dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.tensor([3.0, 3.0, 2.0, 1.0]), torch.zeros(36)]), dtype)
    space = space_of(A, width)
    closed = 0
    while space.dimension < 40:
        stepped(space, A, 40 - space.dimension)
        closed += space.width == 0
    assert closed > 5
    torch.testing.assert_close(
        torch.linalg.eigvalsh(torch.from_numpy(space.projected)).flip(0)[:5],
        torch.tensor([3.0, 3, 2, 1, 0], dtype=torch.float64),
        rtol=0,
        atol=100 * torch.finfo(dtype).eps,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 2])
def test_no_ghosts_appear_when_going_on_long_after_convergence(width: int, dtype: torch.dtype) -> None:
    A = rotated(torch.cat([torch.linspace(0, 1, 97), torch.tensor([50.0, 80.0, 100.0])]), dtype)
    space = grown(A, 100, width)
    found = torch.linalg.eigvalsh(torch.from_numpy(space.projected))
    tolerance = 100 * 300 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, torch.linalg.eigvalsh(A.double()), rtol=0, atol=tolerance)
    half = torch.linalg.eigvalsh(torch.from_numpy(space.projected[:50, :50]))
    assert int((half > 40).sum()) == 3  # long after these three have settled
    assert_is_a_krylov_relation(space, A)


@pytest.mark.parametrize("A", [torch.eye(30), 7 * torch.eye(30).double(), torch.zeros(30, 30), 4 * torch.eye(1)])
def test_multiples_of_the_identity_close_after_every_block(A: Tensor) -> None:
    space = space_of(A, 1)
    space.step(1)
    assert space.width == 0
    while space.dimension < min(5, len(A)):
        space.step(1)
        assert space.width == 0
    assert_is_a_krylov_relation(space, A)
    found = torch.linalg.eigvalsh(torch.from_numpy(space.projected))
    torch.testing.assert_close(found, torch.full_like(found, float(A[0, 0])))


def test_dependent_start_vectors_are_left_out() -> None:
    x, y = gaussian(2, 20)
    A = rotated(torch.linspace(0, 1, 20))
    start = torch.stack([x, 2 * x, y, x - y])
    space = BlockKrylov(from_matrix(A), start, generator())
    assert space.width == 2
    space.step(2)
    torch.testing.assert_close(space.basis.mT @ torch.from_numpy(space.start), start.mT)
    assert_is_a_krylov_relation(space, A)


@given(
    n=st.integers(1, 25),
    width=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    rank=st.integers(0, 25),
    cuts=st.lists(st.integers(1, 4), min_size=1, max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_the_relation_holds_for_any_matrix_and_any_cuts(
    n: int, width: int, seed: int, rank: int, cuts: list[int]
) -> None:
    factor = gaussian(n, min(rank, n), seed=seed)
    signs = torch.sign(gaussian(min(rank, n), seed=seed + 1))
    A = (factor * signs) @ factor.mT
    A = (A + A.mT) / 2
    space = space_of(A, min(width, n), seed + 2)
    for cut in cuts:
        if space.dimension < n:
            stepped(space, A, min(cut, n - space.dimension))


def test_every_column_is_one_product_and_equal_seeds_repeat_bit_for_bit() -> None:
    A = rotated(torch.cat([torch.ones(5), torch.zeros(25)]))
    operator = from_matrix(A)
    space = BlockKrylov(operator, gaussian(2, 30), generator(4))
    while space.dimension < 11:
        space.step(11 - space.dimension)
        assert operator.products == space.dimension
    again, other = (BlockKrylov(from_matrix(A), gaussian(2, 30), generator(seed)) for seed in (4, 5))
    for copy in (again, other):
        while copy.dimension < 11:
            copy.step(11 - copy.dimension)
    assert torch.equal(space.basis, again.basis)
    assert (space.projected == again.projected).all()
    assert torch.equal(space.basis[:4], other.basis[:4])  # the same start
    assert not torch.equal(space.basis, other.basis)  # went on with another vector after the space had closed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("amount", [0.1, 1.0])
def test_an_operator_that_is_not_symmetric_is_refused(amount: float, dtype: torch.dtype) -> None:
    skew = gaussian(50, 50, seed=5)
    A = (rotated(torch.linspace(0, 1, 50)) + amount * (skew - skew.mT) / 10).to(dtype)
    operator = SymmetricOperator(50, lambda V: A @ V, dtype=dtype, device=torch.device("cpu"))
    space = BlockKrylov(operator, gaussian(1, 50), generator())
    space.step(1)
    with pytest.raises(ProbeError, match=r"the operator is not symmetric: .* differ by .*<Av, w> = <v, Aw>"):
        space.step(1)


def test_rounding_is_no_asymmetry_and_a_matrix_of_rounding_is_zero() -> None:
    noise = 1e-9 * gaussian(50, 50, seed=5)
    A = (rotated(torch.linspace(0, 1, 50)) + noise - noise.mT).float()
    operator = SymmetricOperator(50, lambda V: A @ V, dtype=torch.float32, device=torch.device("cpu"))
    space = BlockKrylov(operator, gaussian(1, 50), generator())
    while space.dimension < 20:
        space.step(1)
    assert operator.products == 20


def own(product: Callable[[Tensor], Tensor], size: int) -> SymmetricOperator:
    return SymmetricOperator(size, product, dtype=torch.float64, device=torch.device("cpu"))


def test_an_operator_that_is_random_or_not_linear_is_refused() -> None:
    S, shift, noise = rotated(torch.linspace(1, 20, 60)), gaussian(60, seed=3), generator(4)
    randomly = own(lambda V: S @ V + 0.3 * torch.randn(V.shape, generator=noise, dtype=V.dtype), 60)
    bent = own(lambda V: S @ V + (V * shift[:, None]).abs(), 60)
    for operator in (randomly, bent):
        space = BlockKrylov(operator, gaussian(4, 60), generator(1))
        with pytest.raises(ProbeError, match=r"not symmetric.*a linear product that is deterministic"):
            space.step(4)


def test_the_square_of_the_first_block_must_be_symmetric_too() -> None:
    shear = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double()
    space = BlockKrylov(own(lambda V: shear @ V, 2), gaussian(2, 2), generator(1))
    with pytest.raises(ProbeError, match="not symmetric"):
        space.step(2)
