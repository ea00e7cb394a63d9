from __future__ import annotations

import math

import numpy as np
import pytest

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.estimate import exact_estimate, mean_estimate, root_estimate


def test_an_exact_number_has_no_error_and_a_gap_has_no_number() -> None:
    exact = exact_estimate(3.0, products=2)
    assert (exact.value, exact.stderr, exact.low, exact.high, exact.bound) == (3.0, 0.0, 3.0, 3.0, "exact")
    assert exact.converged
    gap = exact_estimate(math.nan)
    assert math.isnan(gap.stderr)
    assert math.isnan(gap.low)
    assert not gap.converged


def test_without_skew_the_interval_is_a_t_interval_of_half_the_degrees() -> None:
    from scipy.stats import t

    samples = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = mean_estimate(samples)
    stderr = np.std(samples, ddof=1) / math.sqrt(5)
    assert found.stderr == pytest.approx(stderr, rel=1e-14)
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 2, 3.0, stderr), rel=1e-12)


@pytest.mark.parametrize(("last", "clipped"), [(1.0, False), (12.0, True)])
def test_both_ends_solve_halls_cubic(last: float, clipped: bool) -> None:
    from scipy.special import stdtrit

    x = np.append(np.random.default_rng(0).chisquare(1, 19), last)
    found, s, m = mean_estimate(x), x.std(ddof=1), len(x)
    reach = stdtrit((m - 1) / 2, 0.975) / math.sqrt(m)
    g = float((((x - x.mean()) / x.std()) ** 3).mean())
    assert (abs(g) > 0.9 / reach) == clipped
    g = min(g, 0.9 / reach)
    for end, sign in ((found.low, 1), (found.high, -1)):
        W = (x.mean() - end) / s
        cubic = W + g * W**2 / 3 + g**2 * W**3 / 27 + g / (6 * m)
        assert cubic == pytest.approx(sign * reach, rel=1e-10)
    assert found.high - found.value > found.value - found.low > 0  # skewed to the right: the truth may lie far above


@pytest.mark.parametrize("samples", [3, 10, 40])
def test_one_sample_that_lies_apart_does_not_send_an_end_away(samples: int) -> None:
    from scipy.special import stdtrit

    plain = float(stdtrit(max(1, (samples - 1) / 2), 0.975))  # standard errors, without skew
    for apart in (-1.0, 1.0):
        found = mean_estimate([*np.linspace(0, 0.1, samples - 1), apart])
        far = max(found.high - found.value, found.value - found.low) / found.stderr
        near = min(found.high - found.value, found.value - found.low) / found.stderr
        assert 0.5 * plain < near < plain < far < 2.5 * plain


@pytest.mark.parametrize("samples", [16, 32])
def test_the_interval_covers_a_chi_square_where_the_t_interval_does_not(samples: int) -> None:
    rng = np.random.default_rng(1)
    covered = symmetric = 0
    for _ in range(1000):
        found = mean_estimate(x := rng.chisquare(1, samples))
        covered += found.low <= 1 <= found.high
        symmetric += abs(x.mean() - 1) <= 1.96 * found.stderr
    assert 930 <= covered <= 980
    assert symmetric < covered


def test_equal_samples_have_no_error_and_one_sample_has_none() -> None:
    found = mean_estimate([0.1] * 7)
    assert found.stderr < 1e-16
    assert (found.low, found.high) == pytest.approx((0.1, 0.1), rel=1e-14)
    with pytest.raises(ProbeError, match="a standard error requires at least 2 samples, got 1"):
        mean_estimate([1.0])


def test_a_root_maps_the_interval_and_the_error() -> None:
    square = mean_estimate([3.0, 4.0, 5.0])
    root = root_estimate(square)
    assert root.value == 2.0
    assert root.stderr == pytest.approx(square.stderr / 4, rel=1e-14)
    assert root.high == pytest.approx(math.sqrt(square.high), rel=1e-14)
    assert root_estimate(mean_estimate([0.0, 1.0])).low == 0.0  # the lower end was negative
    assert root_estimate(mean_estimate([0.0, 0.0])).stderr == 0.0
