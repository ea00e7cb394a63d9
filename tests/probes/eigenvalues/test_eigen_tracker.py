from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.hessian import hessian

N = 200


def diagonal(*top: float, bulk: float = 2.0, size: int = N) -> SymmetricOperator:
    """Return an operator with some eigenvalues above a bulk from 0, with fixed eigenvectors."""
    values = torch.cat([torch.linspace(0, bulk, size - len(top)), torch.tensor(top)]).double()
    return SymmetricOperator(size, lambda V: values[:, None] * V, dtype=values.dtype, device=torch.device("cpu"))


def error(found: SpectrumEstimate, true: float) -> float:
    assert found.top is not None
    return abs(float(found.top.values[0]) - true) / true


def drifting(angle: float, evaluations: int) -> Iterator[tuple[Tensor, float]]:
    """Yield a matrix with rotating eigenvectors and oscillating eigenvalues, and its largest eigenvalue."""
    values = torch.cat([torch.linspace(0, 1, N - 4), torch.tensor([3.0, 4.0, 6.0, 10.0])]).double()
    generator = gaussian(N, N, seed=5)
    turn = torch.linalg.matrix_exp(angle * (generator - generator.mT) / math.sqrt(2 * N))
    A = torch.diag(values)
    for evaluation in range(evaluations):
        size = 1 + 0.2 * math.sin(evaluation / 3)
        yield size * (A + A.mT) / 2, 10 * size
        A = turn @ A @ turn.mT


def test_the_first_evaluation_is_a_cold_search_and_finds_the_largest_eigenvalue() -> None:
    for seed in range(50):
        found = EigenTracker(rel=0.03, seed=seed).measure(diagonal(10, 9.9, 9.5))
        assert error(found, 10) < 0.03
        assert found.products > 4
        assert found.top is not None
        assert found.bottom is found.trace is found.frobenius is found.density is None
        assert (found.engine, found.method) == ("lossscope", "own product")
        assert len(found.top.values) == found.top.vectors.shape[1] == 1


@pytest.mark.parametrize("angle", [0.003, 0.03])
def test_later_evaluations_to_a_matrix_that_drifts_take_two_products(angle: float) -> None:
    tracker, products = EigenTracker(rel=0.03), []
    for A, true in drifting(angle, 30):
        operator = from_matrix(A)
        found = tracker.measure(operator)
        products.append(operator.products)
        assert found.products == operator.products
        assert found.unmet == ()
        assert error(found, true) < 0.03
        assert abs(float(found.top.values[0]) - true) <= float(found.top.bounds[0])
    assert sum(products[1:]) / 29 <= 2.1
    assert products[0] >= 2 * max(products[1:])
    assert tracker.crossings == 0


def test_a_large_move_is_paid_for_with_products_and_still_bounded() -> None:
    tracker = EigenTracker(rel=0.01)
    for seed in range(6):
        Q, _ = torch.linalg.qr(gaussian(N, N, seed=seed))
        values = torch.cat([torch.linspace(0, 1, N - 2), torch.tensor([5.0, 10.0])]).double()
        A = (Q * values) @ Q.mT
        found = tracker.measure(from_matrix((A + A.mT) / 2))
        assert error(found, 10) < 0.01
        assert found.products > 2
    assert tracker.crossings == 5


def test_the_residual_is_a_bound_at_every_evaluation_and_is_the_true_one() -> None:
    tracker = EigenTracker(rel=0.03)
    for A, _ in drifting(0.3, 15):
        found = tracker.measure(from_matrix(A)).top
        assert found is not None
        true = A @ found.vectors[:, 0] - found.values[0] * found.vectors[:, 0]
        assert float(found.residuals[0]) == pytest.approx(float(torch.linalg.vector_norm(true)), rel=1e-6, abs=1e-9)
        eigenvalues = torch.linalg.eigvalsh(A)
        assert float((eigenvalues - found.values[0]).abs().min()) <= float(found.residuals[0])
        assert bool(found.converged[0]) == (float(found.bounds[0]) <= 0.03 * float(found.values[0]))
        assert float(torch.linalg.vector_norm(found.vectors[:, 0])) == pytest.approx(1)


def test_where_two_eigenvectors_exchange_through_each_other_every_evaluation_is_right() -> None:
    """An avoided crossing, as is generic for a matrix that depends on one parameter."""
    for seed in range(4):
        tracker = EigenTracker(rel=0.03, seed=seed)
        for evaluation in range(40):
            x = evaluation / 39
            block = torch.tensor([[10 - 4 * x, 0.5], [0.5, 6 + 4 * x]], dtype=torch.float64)
            A = torch.block_diag(torch.diag(torch.linspace(0, 4, N - 2).double()), block)
            found = tracker.measure(from_matrix(A))
            assert error(found, float(torch.linalg.eigvalsh(block)[1])) < 0.03
            assert evaluation == 0 or found.products <= 4


def wrong_evaluations(tracker: EigenTracker, pairs: list[tuple[float, float]], bulk: float) -> list[int]:
    """Return the evaluations at which another eigenvalue is reported as the largest."""
    found = [error(tracker.measure(diagonal(*pair, bulk=bulk)), max(pair)) for pair in pairs]
    return [evaluation for evaluation, off in enumerate(found) if off > 0.03]


@pytest.mark.parametrize("seed", range(4))
def test_two_eigenvectors_that_exchange_are_distinguished_some_evaluations_later(seed: int) -> None:
    tracker = EigenTracker(rel=0.03, seed=seed)
    wrong = wrong_evaluations(tracker, [(10 - v / 10, 6 + v / 10) for v in range(60)], bulk=4.0)
    assert len(wrong) <= 15
    assert tracker.crossings == 1
    assert not wrong or wrong[-1] < 45


@pytest.mark.parametrize("seed", range(4))
def test_a_direction_that_rises_out_of_the_bulk_is_found_within_some_evaluations(seed: int) -> None:
    tracker = EigenTracker(rel=0.03, seed=seed)
    wrong = wrong_evaluations(tracker, [(10, 1.0 if evaluation < 10 else 14.0) for evaluation in range(30)], bulk=2.0)
    assert wrong == list(range(10, 10 + len(wrong)))
    assert len(wrong) <= 10
    assert tracker.crossings == 1


def test_more_vectors_are_kept_where_eigenvalues_are_close_or_have_crossed() -> None:
    def kept(*pairs: tuple[float, ...]) -> int:
        tracker = EigenTracker(rel=0.03)
        for pair in pairs:
            tracker.measure(diagonal(*pair))
        return tracker._keep

    assert kept((10, 1)) == 2
    assert kept((10, 9.5)) == 3
    assert kept((10, 9.5), *[(10, 1)] * 8) == 2
    jump = [(10, 1), *[(10, 14)] * 10]
    counts = [kept(*jump[:evaluations]) for evaluations in range(1, 11)]
    assert counts[0] == 2
    assert max(counts) == 3


def test_an_unmet_bound_is_reported_and_the_budget_is_kept() -> None:
    tracker = EigenTracker(rel=1e-6, max_products=3)
    for A, _ in drifting(0.3, 4):
        operator = from_matrix(A)
        found = tracker.measure(operator)
        assert operator.products == found.products == 3
        assert found.unmet == ("top",)
        assert not found.top.converged.any()


def test_equal_seeds_repeat_bit_for_bit() -> None:
    first, again, other = (EigenTracker(rel=0.03, seed=seed) for seed in (1, 1, 2))
    differs = False
    for A, _ in drifting(0.1, 6):
        a, b, c = (tracker.measure(from_matrix(A)).top for tracker in (first, again, other))
        assert torch.equal(a.values, b.values)
        assert torch.equal(a.vectors, b.vectors)
        differs |= not torch.equal(a.vectors, c.vectors)
    assert differs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiny_and_degenerate_matrices_are_tracked_too(dtype: torch.dtype) -> None:
    for A in (torch.eye(1), torch.eye(40), torch.zeros(40, 40), torch.diag(torch.tensor([2.0, 2.0, 1.0]))):
        tracker = EigenTracker(rel=0.03)
        for size in (1.0, 1.1, 1.2):
            found = tracker.measure(from_matrix((size * A).to(dtype)))
            assert float(found.top.values[0]) == pytest.approx(size * float(A[0, 0]), rel=0.01)
            assert found.unmet == ()
            assert found.products <= 3


def test_a_change_of_size_and_settings_out_of_range_are_refused() -> None:
    tracker = EigenTracker()
    tracker.measure(diagonal(10))
    with pytest.raises(ProbeError, match=r"size 200 and .* as before, got 100 and .*: use a new EigenTracker"):
        tracker.measure(diagonal(10, size=100))
    with pytest.raises(
        ProbeError,
        match=r"size 200 and torch.float64 as before, got 200 and torch.float32",
    ):
        tracker.measure(from_matrix(torch.eye(N)))
    for rel in (0, 1):
        with pytest.raises(ProbeError, match=f"rel must be between 0 and 1, got {rel}"):
            EigenTracker(rel=rel)
    with pytest.raises(ProbeError, match="max_products must be at least 1, got 0"):
        EigenTracker(max_products=0)


def digits_run(evaluations: int, steps: int) -> Iterator[Objective]:
    """Train 6570 float32 parameters on digits with AdamW; yield the loss on 512 samples every few steps."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    x, y = torch.tensor(scans.data, dtype=torch.float32) / 16, torch.tensor(scans.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    objective = Objective(net, CrossEntropy(), [(x[:512], y[:512])])
    for _ in range(evaluations):
        for _ in range(steps):
            rows = torch.randint(len(x), (128,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
        yield objective


def test_along_a_training_run_an_evaluation_costs_three_products_and_errs_by_less_than_three_per_cent() -> None:
    tracker, products, errors = EigenTracker(rel=0.03), [], []
    for objective in digits_run(40, 10):
        found = tracker.measure(hessian(objective))
        assert found.unmet == ()
        products.append(found.products)
        reference = measure_spectrum(hessian(objective), top=1, rel=3e-4, max_products=150, quantities=("top",)).top
        assert reference is not None
        errors.append(error(found, float(reference.values[0])))
    assert max(errors) < 0.03
    assert sum(products[1:]) / 39 < 3.2  # 3.00 to 3.05 over the seeds
    assert products[0] < 40
