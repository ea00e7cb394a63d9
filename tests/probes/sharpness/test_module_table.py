from __future__ import annotations

import math

import pytest
import torch

from lossscope.probes.operators.base import from_matrix
from lossscope.probes.sharpness.per_block import ModuleTable, _BlockMeasurement, _module_table, _WholeMeasurement
from lossscope.probes.spectrum.measure import measure_spectrum
from lossscope.probes.spectrum.results import EigenPairs
from lossscope.probes.statistics.estimate import Estimate, exact_estimate


def pairs(values: list[float], residual: float) -> EigenPairs:
    k = len(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    residuals = torch.full((k,), residual, dtype=torch.float64)
    return EigenPairs(numbers, torch.eye(4, k, dtype=torch.float64), residuals, residuals, residuals < 1)


def block(largest: float, frobenius: Estimate, part: float = 1.0) -> _BlockMeasurement:
    top = Estimate(largest, math.nan, largest, largest, 0, "residual", residual=0.0)
    return _BlockMeasurement("b", ("b.weight",), 2, exact_estimate(3.0), top, frobenius, part, 0.5, 10)


def sampled(value: float, error: float) -> Estimate:
    return Estimate(value, error / 2, value - error, value + error, 8, "standard error")


def table(whole: EigenPairs, frobenius: Estimate, *blocks: _BlockMeasurement) -> ModuleTable:
    return _module_table(_WholeMeasurement(whole, frobenius, 20), blocks, 0.01, 0.0)


def test_a_block_that_is_sharper_than_the_whole_proves_that_the_whole_was_missed() -> None:
    found = table(pairs([2.0, 1.0], 0.1), sampled(5, 0.1), block(3.0, sampled(2, 0.1)), block(1.0, sampled(2, 0.1)))
    assert (found.lambda_max.value, found.lambda_max.high, found.lambda_max.converged) == (2.0, 3.0, False)
    fine = table(pairs([2.0, 1.0], 0.1), sampled(5, 0.1), block(2.05, sampled(2, 0.1)))
    assert (fine.lambda_max.high, fine.lambda_max.converged) == (2.1, True)


def test_blocks_that_chance_makes_larger_than_the_whole_are_all_of_it() -> None:
    found = table(pairs([2.0, 1.0], 0.1), sampled(5, 0.4), block(1.0, sampled(4, 0.2)), block(1.0, sampled(3.5, 0.2)))
    assert (found.cross_share.value, found.cross_share.low) == (0.0, 0.0)
    assert 0.05 < found.cross_share.high < 0.4
    assert sum(row.frobenius_share.value for row in found.rows) == pytest.approx(1, abs=1e-12)


def test_the_cross_share_has_the_errors_of_the_whole_and_of_the_blocks() -> None:
    # 1 - 2 * 9 / 25 with |A|_F = 5 and blocks of norm 3: dx = -2 * 3 / 25 dF_l twice, and 18 / 25^2 * 2 * 5 dF
    found = table(pairs([2.0, 1.0], 0.1), sampled(5, 2e-4), *[block(1.0, sampled(3, 2e-4))] * 2)
    assert found.cross_share.value == pytest.approx(7 / 25)
    expected = math.hypot(6 / 25, 6 / 25, 180 / 625) * 1e-4
    assert found.cross_share.stderr == pytest.approx(expected, rel=1e-6)
    assert found.cross_share.high - found.cross_share.low == pytest.approx(4 * expected, rel=1e-3)


def test_an_eigenvector_that_no_gap_settles_has_shares_that_are_not_known() -> None:
    clear, close = (
        table(pairs([2.0, other], 0.01), sampled(5, 0.1), block(1.0, sampled(2, 0.1), 1.5)) for other in (1.0, 1.995)
    )
    for found in (clear, close):
        assert (found.rows[0].top_share.value, found.top_cross_share.value) == (0.75, 0.25)
    assert clear.rows[0].top_share.high - 0.75 == pytest.approx(2 * (0.01 / 0.99) * 0.5 / 2, rel=0.05)
    assert clear.top_cross_share.converged
    assert close.rows[0].top_share.low < 0.25
    assert not close.top_cross_share.converged


def test_the_bound_of_a_top_share_holds_for_vectors_that_are_off() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(60, 60, generator=generator, dtype=torch.float64)
    A = A @ A.mT + torch.diag(torch.linspace(0, 40, 60, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(A)
    v = vectors[:, -1]
    truth = float(v[:25] @ A[:25, :25] @ v[:25] / values[-1])
    missed = 0
    for seed in range(30):
        top = measure_spectrum(from_matrix(A), top=2, rel=0.1, quantities=("top",), seed=seed).top
        u = top.vectors[:25, 0].double()
        along = A[:25, :25] @ u
        one = _BlockMeasurement(
            "b",
            ("b",),
            25,
            exact_estimate(float(A[:25, :25].trace())),
            Estimate(1.0, math.nan, 1.0, 1.0, 0, "residual"),
            exact_estimate(float(A[:25, :25].norm())),
            float(u @ along),
            float(along.norm()),
            0,
        )
        share = (
            _module_table(_WholeMeasurement(top, exact_estimate(float(A.norm())), 0), [one], 0.1, 0.0).rows[0].top_share
        )
        missed += not share.low <= truth <= share.high
        assert abs(share.value - truth) > 1e-6  # the vectors are off
    assert missed == 0
