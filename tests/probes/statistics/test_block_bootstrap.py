from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lossscope.probes.errors import ProbeError
from lossscope.probes.statistics.block_bootstrap import Array, block_bootstrap, block_length


def mean(sums: Array) -> Array:
    return sums[0] / sums[1]


def counted(series: Array) -> Array:
    return np.stack([series, np.ones_like(series)])


def autoregressive(r: float, steps: int, seed: int) -> Array:
    generator = np.random.default_rng(seed)
    found = np.empty(steps)
    found[0] = generator.standard_normal()
    for t in range(1, steps):
        found[t] = r * found[t - 1] + math.sqrt(1 - r * r) * generator.standard_normal()
    return found


def test_the_standard_error_of_independent_steps_is_the_usual_one() -> None:
    series = np.random.default_rng(0).standard_normal(400)
    found = block_bootstrap(counted(series), mean, block=1, draws=20000)
    assert found.value == pytest.approx(series.mean(), rel=1e-12)
    assert found.stderr == pytest.approx(series.std(ddof=1) / 20, rel=0.03)
    assert found.high - found.low == pytest.approx(2 * 1.966 * found.stderr, rel=0.03)
    assert (found.samples, found.converged, found.bound) == (400, True, "standard error")


def test_steps_that_depend_are_covered_by_blocks_and_not_by_single_steps() -> None:
    single = chosen = 0
    for seed in range(200):
        rows = counted(autoregressive(0.7, 300, seed))
        for block in (1, block_length(rows[0])):
            found = block_bootstrap(rows, mean, block=block, draws=400, seed=seed)
            inside = found.low <= 0 <= found.high
            single, chosen = single + (inside and block == 1), chosen + (inside and block > 1)
    assert single < 150
    assert 180 <= chosen <= 198


@pytest.mark.parametrize(("r", "expected"), [(0.0, 1), (0.5, 14), (0.9, 51)])
def test_the_length_of_blocks_is_the_closed_form_of_an_autoregressive_series(r: float, expected: int) -> None:
    series = autoregressive(r, 1000, 3)
    assert block_length(series) == pytest.approx(expected, rel=0.25, abs=2)
    assert expected == pytest.approx((6 * r**2 / (1 - r**2) ** 2 * 1000) ** (1 / 3), abs=1)


def test_gaps_do_not_change_the_length_by_much() -> None:
    series = autoregressive(0.9, 1000, 3)
    series[::7] = math.nan
    assert block_length(series) == pytest.approx(51, rel=0.3)
    assert block_length(np.ones(9)) == 1
    assert block_length(1 / 3 + 1e-16 * series[1:7]) == 1  # rounding is not a correlation
    assert block_length(np.arange(30.0)) == 10


@given(st.integers(0, 100), st.integers(1, 30))
def test_every_draw_has_whole_blocks_of_the_ring(seed: int, block: int) -> None:
    rows = np.stack([np.arange(30.0), np.ones(30)])

    def look(sums: Array) -> Array:
        if sums.shape[1] > 1:
            assert set(sums[1]) == {float(math.ceil(30 / block) * block)}
            assert np.array_equal(sums[0], sums[0].round())
        return sums[0] / sums[1]

    found = block_bootstrap(rows, look, block=block, draws=50, seed=seed)
    assert found.low <= found.value == 14.5 <= found.high


def test_too_few_blocks_are_not_trusted() -> None:
    rows = counted(autoregressive(0.0, 40, 0))
    assert block_bootstrap(rows, mean, block=4).converged
    assert not block_bootstrap(rows, mean, block=5).converged
    whole = block_bootstrap(rows, mean, block=40)
    assert (whole.low, whole.high) == (-math.inf, math.inf)


def test_few_blocks_get_the_reach_of_as_many_samples() -> None:
    found = [block_bootstrap(counted(autoregressive(0.0, 400, seed)), mean, block=100, draws=500) for seed in range(30)]
    reach = np.mean([(estimate.high - estimate.low) / (2 * estimate.stderr) for estimate in found])
    assert reach == pytest.approx(3.18, rel=0.1)  # Student's with three degrees of freedom, not 1.96


def test_draws_without_a_number_open_the_interval() -> None:
    def ratio(sums: Array) -> Array:
        return np.where(sums[0] > 0, 1 / np.where(sums[0] > 0, sums[0], 1.0), math.nan)

    rows = np.array([[1.0, -1.0, 1.0, -1.0, 1.0]])
    found = block_bootstrap(rows, ratio, block=1)
    assert (found.value, found.low, found.high, found.converged) == (1.0, -math.inf, math.inf, False)
    assert math.isnan(block_bootstrap(-rows, ratio, block=1).value)


@pytest.mark.parametrize("block", [0, 6])
def test_a_block_that_does_not_fit_is_refused(block: int) -> None:
    with pytest.raises(ProbeError, match=f"block must be from 1 to 5 steps, the length of the run, got {block}"):
        block_bootstrap(np.ones((1, 5)), lambda s: s[0], block=block)
