from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers import dense, gaussian
from lossscope.landscape.measures.estimate_rows import spectrum_rows
from lossscope.probes.eigenvalues.eigen_tracker import EigenTracker
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.eigenvalues.results import SpectrumEstimate
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian


def largest(
    operator: SymmetricOperator, *, proof: bool, rel: float = 0.05, seed: int = 0, **more: Tensor
) -> SpectrumEstimate:
    return measure_spectrum(operator, top=1, rel=rel, quantities=("top",), proof=proof, seed=seed, **more)


def spread() -> tuple[SymmetricOperator, Tensor]:
    """Return a matrix with a few outliers over a bulk, and its eigenvalues."""
    values = torch.cat([torch.tensor([10.0, 8.0, 5.0]), torch.linspace(-1, 1, 297)]).double()
    Q = torch.linalg.qr(gaussian(300, 300)).Q
    return from_matrix(Q @ torch.diag(values) @ Q.T), values


@pytest.mark.parametrize("seed", range(6))
def test_without_a_proof_an_eigenvalue_lies_within_the_residual_and_fewer_products_are_taken(seed: int) -> None:
    operator, values = spread()
    fast, slow = (largest(operator, proof=proof, seed=seed) for proof in (False, True))
    assert fast.products < slow.products
    assert not fast.proof
    assert slow.proof
    assert fast.top is not None
    value, residual = float(fast.top.values[0]), float(fast.top.residuals[0])
    assert residual <= 0.05 * value
    assert float((values - value).abs().min()) <= residual
    one = fast.top.estimate(0)
    assert (one.low, one.high) == pytest.approx((value - residual, value + residual))
    assert one.converged


def test_the_exact_residual_is_within_the_one_stated() -> None:
    operator, _ = spread()
    pairs = measure_spectrum(operator, top=3, bottom=2, rel=0.02, quantities=("top", "bottom"), proof=False)
    for ends in (pairs.top, pairs.bottom):
        assert ends is not None
        apart = (operator @ ends.vectors - ends.vectors * ends.values.to(ends.vectors)).norm(dim=0)
        assert bool((apart <= ends.residuals + 1e-9).all())
        assert bool((ends.residuals <= 0.02 * 10.1).all())
        assert not ends.proof


def test_the_gradient_is_the_start_of_a_hessian_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    objective = Objective(net, CrossEntropy(), [(gaussian(40, 6), torch.randint(4, (40,)))])
    H = hessian(objective)
    truth = float(torch.linalg.eigvalsh(dense(H))[-1])
    given = largest(H, proof=False, rel=0.01, warm_start=objective.gradient())
    found = largest(H, proof=False, rel=0.01)
    assert found.top is not None
    assert given.top is not None
    assert torch.equal(found.top.values, given.top.values)
    assert float(found.top.values[0]) == pytest.approx(truth, rel=0.02)
    assert gauss_newton(objective).likely_direction() is None
    assert from_matrix(torch.eye(3)).likely_direction() is None
    torch.testing.assert_close(H.likely_direction(), objective.gradient())


def test_a_tracker_has_a_proof_at_its_first_evaluation_alone_and_only_if_its_budget_was_enough() -> None:
    operator, _ = spread()
    tracker = EigenTracker(rel=0.05)
    assert [tracker.measure(operator).proof for _ in range(3)] == [True, False, False]
    assert not EigenTracker(rel=0.05, max_products=2).measure(operator).proof


def test_rows_of_eigenvalues_say_so_and_no_others() -> None:
    operator, _ = spread()
    for proof in (True, False):
        found = measure_spectrum(operator, top=1, rel=0.05, trace_rel=0.3, quantities=("top", "trace"), proof=proof)
        assert found.top is not None
        assert found.trace is not None
        rows = spectrum_rows({"lambda_max": found.top.estimate(0), "trace": found.trace}, found).probes
        assert [row["proof"] for row in rows] == [proof, None]
