from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate
from lossscope.probes.statistics.propagation import (
    balanced_sum_estimate,
    linear_estimate,
    part_shares,
    square_estimate,
    sum_estimate,
)


def known(value: float, below: float = 1.0, above: float = 1.0) -> Estimate:
    return Estimate(value, (below + above) / 4, value - below, value + above, 10, "standard error")


def test_errors_of_a_sum_add_in_quadrature_on_each_side() -> None:
    found = sum_estimate([known(1.0, 3.0, 1.0), known(2.0, 4.0, 1.0), exact_estimate(10.0)])
    assert (found.value, found.low, found.high) == pytest.approx((13.0, 8.0, 13 + math.sqrt(2)))
    assert found.stderr == pytest.approx(math.hypot(1.0, 1.25))
    assert (found.bound, found.samples, found.converged) == ("standard error", 20, True)


def test_a_sum_of_exact_numbers_is_exact() -> None:
    found = sum_estimate([exact_estimate(0.1)] * 10)
    assert (found.value, found.stderr, found.low, found.high, found.bound) == (1.0, 0.0, 1.0, 1.0, "exact")


def test_a_negative_slope_turns_the_interval_round() -> None:
    found = linear_estimate(-2.0, [(-2.0, known(1.0, 3.0, 1.0)), (0.0, known(1.0, math.inf, math.inf))])
    assert (found.low, found.high) == (-4.0, 4.0)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=6))
def test_shares_add_up_to_one(values: list[float]) -> None:
    shares = part_shares([known(value, value / 20, value / 10) for value in values])
    assert math.fsum(share.value for share in shares) == pytest.approx(1, abs=1e-12)
    assert all(share.low <= share.value <= share.high for share in shares)


def test_the_error_of_a_share_is_its_derivative() -> None:
    values, step = [1.0, 2.0, 5.0], 1e-6
    shares = part_shares([known(value, 4 * step, 4 * step) for value in values])
    for part, share in enumerate(shares):
        moved = []
        for term in range(3):
            other = [value + step * 2 * (place == term) for place, value in enumerate(values)]
            moved.append(other[part] / sum(other) - values[part] / sum(values))
        assert share.stderr == pytest.approx(math.hypot(*moved), rel=1e-4)


def test_a_share_of_a_sum_that_may_be_zero_is_a_gap() -> None:
    for share in part_shares([known(2.0), known(-1.0)]):
        assert math.isnan(share.value)
        assert math.isnan(share.stderr)
        assert not share.converged
    below = part_shares([known(-6.0), known(-2.0)])
    assert [share.value for share in below] == [0.75, 0.25]
    assert all(share.low < share.value < share.high for share in below)


def test_the_interval_of_shares_and_balanced_sums_covers_the_truth() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([1.0, 3.0, 6.0])
    least = 3 * 18 ** (1 / 3)
    covered = [0, 0]
    for _ in range(400):
        terms = [mean_estimate(t * (1 + 0.5 * rng.standard_normal(60))) for t in truth]
        share, balanced = part_shares(terms)[0], balanced_sum_estimate(terms)
        covered[0] += share.low <= 0.1 <= share.high
        covered[1] += balanced.low <= least <= balanced.high
    assert 0.93 * 400 <= covered[0] <= 0.985 * 400
    assert 0.93 * 400 <= covered[1] <= 0.985 * 400


def test_the_balanced_sum_is_the_least_one() -> None:
    terms = [1.0, 4.0, 16.0]
    found = balanced_sum_estimate([exact_estimate(t) for t in terms])
    assert (found.value, found.stderr, found.bound) == (pytest.approx(12.0), 0.0, "exact")
    scales = np.exp(np.random.default_rng(0).standard_normal((200, 3)))
    scales /= scales.prod(1, keepdims=True) ** (1 / 3)
    assert (scales * terms).sum(1).min() > 12.0


def test_a_balanced_sum_with_a_term_that_is_not_positive_is_a_gap() -> None:
    assert math.isnan(balanced_sum_estimate([known(2.0), exact_estimate(0.0)]).value)
    unsure = balanced_sum_estimate([known(2.0), known(1.0, 1.5, 1.0)])
    assert (unsure.low, unsure.value) == (0.0, pytest.approx(2 * math.sqrt(2)))


def test_a_square_maps_the_interval() -> None:
    found = square_estimate(known(3.0, 4.0, 1.0))
    assert (found.value, found.low, found.high, found.stderr) == (9.0, 0.0, 16.0, 7.5)
