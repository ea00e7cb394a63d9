from __future__ import annotations

import math

import numpy as np
import pytest

from lossscope.optimizer.ascent.trigger import TriggerState, adaptive, timed
from lossscope.probes.dynamics.trigger_test import TriggerTest, phi_autocorrelation, timer_test, trigger_test
from lossscope.probes.errors import ProbeError


def run_of_timer(lamda: float, k: int, steps: int, seed: int = 0) -> list[bool]:
    """Run the optimizer's own random timer, which is the null model."""
    state, found = TriggerState(), []
    for _ in range(steps):
        decision = timed(state, k=k, alpha=0.1, lamda=lamda, seed=seed)
        found.append(decision.sync)
        state = decision.after
    return found


@pytest.mark.parametrize(("lamda", "k"), [(0.0, 3), (1.0, 10), (2.0, 10)])
def test_the_random_timer_fires_with_its_nominal_probability(lamda: float, k: int) -> None:
    found = timer_test(run_of_timer(lamda, k, 20000), lamda=lamda, k=k)
    p = math.erfc(lamda / math.sqrt(2)) / 2
    assert found.expected == pytest.approx(p, rel=1e-12)
    assert found.chance == found.share.value
    assert abs(found.chance - p) < 4 * found.share.stderr < 0.03
    assert found.rate == pytest.approx(p / (1 - (1 - p) ** k), rel=0.03)


def test_the_interval_of_the_timer_covers_its_probability_over_seeds() -> None:
    found = [timer_test(run_of_timer(1.0, 10, 600, seed), lamda=1.0, k=10) for seed in range(100)]
    assert 90 <= sum(one.share.low <= one.expected <= one.share.high for one in found) < 100


def adaptive_test(phis: list[float], rule: str) -> TriggerTest:
    """Test the optimizer's own trigger with its default threshold and cap, from what it would have recorded."""
    state, synced, thresholds = TriggerState(), [], []
    for phi in phis:
        found = adaptive(state, phi, k=10, alpha=0.1, beta=0.99, lamda=2.0, gamma=1.0, rule=rule)
        state = found.after
        synced.append(found.sync)
        thresholds.append(found.threshold)
    return trigger_test(synced, phis, thresholds, k=10)


@pytest.mark.parametrize("rule", ["reference", "lagged"])
@pytest.mark.parametrize("steps", [60, 400])
@pytest.mark.parametrize("kind", ["white", "shrinking", "heavy"])
def test_noise_of_any_size_is_told_from_a_trigger_no_more_often_than_said(rule: str, steps: int, kind: str) -> None:
    generator, count = np.random.default_rng(0), 150
    draw = generator.standard_t(3, (count, steps)) if kind == "heavy" else generator.standard_normal((count, steps))
    size = np.linspace(0.3, 0.03, steps) if kind == "shrinking" else 0.1
    found = [adaptive_test(phis, rule).share for phis in (size * draw).tolist()]
    assert max(sum(one.low > 0.5 for one in found), sum(one.high < 0.5 for one in found)) <= 9  # 2.5 % of 150 are 3.8
    tested = [one for one in found if math.isfinite(one.value)]  # phi may never be beyond its threshold
    fired, possible = sum(one.value * one.samples for one in tested), sum(one.samples for one in tested)
    assert fired == pytest.approx(possible / 2, abs=2 * math.sqrt(possible))  # 4 standard deviations


@pytest.mark.parametrize("rule", ["reference", "lagged"])
def test_a_phi_that_lies_below_zero_is_told_from_noise(rule: str) -> None:
    generator = np.random.default_rng(0)
    found = [adaptive_test((0.25 * generator.standard_normal(1000) - 0.08).tolist(), rule) for _ in range(20)]
    assert all(one.share.low > 0.5 for one in found)
    assert all(one.share.value > 1.2 * one.expected for one in found)


def test_the_share_counts_the_steps_before_the_cap_with_phi_beyond_the_threshold_on_either_side() -> None:
    synced = [True, False, True, True, False, False, True]
    phi = [None, 0.1, -0.3, -0.3, 0.3, None, 0.1]
    thresholds = [None, -0.2, -0.2, -0.2, -0.2, -0.2, None]
    found = trigger_test(synced, phi, thresholds, k=3)
    # Intervals of 2, 1 and 3 steps. Before the cap: steps 1 to 5; beyond the threshold: 2 and 3 below, 4 above.
    assert (found.share.value, found.share.samples, found.expected) == (pytest.approx(2 / 3), 3, 0.5)
    assert (found.syncs, found.rate, found.chance) == (4, 0.5, 2 / 5)


def test_the_interval_of_the_share_is_that_of_a_binomial() -> None:
    found = trigger_test([True] * 11, [-0.1] * 11, [0.0] * 11, k=2).share  # ten of ten
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(0.025 ** (1 / 10)), 1.0)


def test_a_periodic_trigger_never_fires_by_itself() -> None:
    found = timer_test([t % 5 == 0 for t in range(101)], lamda=1.0, k=5)
    assert (found.syncs, found.rate, found.chance, found.share.low) == (21, 0.2, 0.0, 0.0)
    assert found.share.high == pytest.approx(1 - 0.025 ** (1 / 80))  # at none of 4 steps in 20 intervals


def test_a_second_gradient_at_every_step_leaves_no_step_before_the_cap() -> None:
    found = timer_test([True] * 20, lamda=1.0, k=1)
    assert found.rate == 1.0
    assert math.isnan(found.chance)
    assert math.isnan(found.share.value)


def test_the_unfinished_interval_at_the_end_is_left_out() -> None:
    steps = [True, False, True, False, True]
    whole, more = (timer_test([*steps, *tail], lamda=1.0, k=4) for tail in ([], [False, False]))
    assert whole == more
    assert timer_test([True, False, True], lamda=1.0, k=4).rate == 0.5
    assert math.isnan(timer_test([False, True], lamda=1.0, k=4).rate)
    assert math.isnan(timer_test([], lamda=1.0, k=4).share.value)


def test_white_noise_stays_in_its_band_and_an_autoregressive_phi_leaves_it() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(4000)
    white = phi_autocorrelation(noise.tolist(), lags=range(1, 101))
    assert 90 <= (np.abs(white.values) < white.band).sum() < 100
    phi = [noise[0]]
    for x in noise[1:]:
        phi.append(0.6 * phi[-1] + 0.8 * x)
    found = phi_autocorrelation(phi, lags=(1, 2, 3))
    assert found.values == pytest.approx([0.6, 0.36, 0.216], abs=0.04)
    assert found.band == pytest.approx(1.96 / math.sqrt(4000), rel=1e-3)


def test_steps_without_phi_are_left_out_of_both_sums() -> None:
    phi = [1.0, -1.0] * 50
    holes: list[float | None] = [None if t % 10 == 3 else value for t, value in enumerate(phi)]
    found = phi_autocorrelation(holes, lags=(1, 2, 10))
    assert found.values == pytest.approx([-1.0, 1.0, 1.0], abs=0.05)
    assert found.band == pytest.approx(1.96 / np.sqrt([79, 78, 81]), rel=1e-12)
    assert np.isnan(phi_autocorrelation([0.5] * 9, lags=(1,)).values).all()
    assert np.isnan(phi_autocorrelation([0.1, 0.2], lags=(7,)).values).all()
    assert np.isnan(phi_autocorrelation([], lags=(1,)).band).all()


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"4 steps between two second gradients exceed the cap k=3"):
        timer_test([True, False, False, False, True], lamda=1.0, k=3)
    with pytest.raises(ProbeError, match="k must be at least 1 step, got 0"):
        timer_test([True], lamda=1.0, k=0)
    with pytest.raises(ProbeError, match="lamda must be finite and at least 0, got -1"):
        timer_test([True], lamda=-1.0, k=2)
    with pytest.raises(ProbeError, match="must have one value per step, got 2, 2 and 1"):
        trigger_test([True, True], [0.1, 0.2], [-0.1], k=2)
    with pytest.raises(ProbeError, match=r"thresholds must be at most 0, got 0\.1"):
        trigger_test([True], [0.1], [0.1], k=2)
    with pytest.raises(ProbeError, match="pass phi and thresholds of every step"):
        trigger_test([True, True, True], [-0.2, 0.05, -0.2], [-0.1] * 3, k=2)
    with pytest.raises(ProbeError, match=r"lags must be at least 1 step each, got \(0,\)"):
        phi_autocorrelation([0.1], lags=(0,))
