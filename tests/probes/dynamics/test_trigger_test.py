from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, strategies as st

from lossscope.optimizer.ascent.trigger import TriggerState, adaptive, timed
from lossscope.probes.dynamics.trigger_test import TriggerTest, noise_chances, phi_memory, trigger_test
from lossscope.probes.errors import ProbeError


def run_of_timer(lamda: float, k: int, steps: int, seed: int = 0) -> list[bool]:
    """The optimizer's own random timer, which is the null."""
    state, found = TriggerState(), []
    for _ in range(steps):
        decision = timed(state, k=k, alpha=0.1, lamda=lamda, seed=seed)
        found.append(decision.sync)
        state = decision.after
    return found


def run_of_adaptive(lamda: float, k: int, phis: list[float], rule: str = "lagged") -> list[bool]:
    state, found = TriggerState(), []
    for phi in phis:
        decision = adaptive(state, phi, k=k, alpha=0.1, beta=0.99, lamda=lamda, gamma=1.0, rule=rule)
        found.append(decision.sync)
        state = decision.after
    return found


@pytest.mark.parametrize(("lamda", "k"), [(0.0, 3), (1.0, 10), (2.0, 10)])
def test_the_random_timer_has_the_rate_and_the_runs_of_the_null(lamda: float, k: int) -> None:
    found = trigger_test(run_of_timer(lamda, k, 20000), lamda=lamda, k=k)
    assert found.rate.value == pytest.approx(found.null_rate, rel=0.03)
    assert abs(found.rate.value - found.null_rate) < 4 * found.rate.stderr < 0.03
    assert abs(found.chance.value - found.null_chance) < 4 * found.chance.stderr < 0.03
    spread = 4 * np.sqrt(found.null_runs + 1)
    assert np.all(np.abs(found.runs - found.null_runs) < spread)


@pytest.mark.parametrize(("lamda", "k"), [(0.0, 1), (0.0, 3), (1.0, 10), (2.0, 10), (9.0, 10**4), (50.0, 10)])
def test_the_capped_rate_is_that_of_geometric_runs_cut_off_at_the_cap(lamda: float, k: int) -> None:
    p = math.erfc(lamda / math.sqrt(2)) / 2
    found = trigger_test([True, True], lamda=lamda, k=k, chances=[1.0, 1.0])
    mean = math.fsum((1 - p) ** j for j in range(k))
    assert found.capped_rate == pytest.approx(1 / mean, rel=1e-9)


def test_the_random_timer_keeps_to_the_capped_rate_and_noise_of_the_first_steps_does_not() -> None:
    timer = trigger_test(run_of_timer(2.0, 10, 20000), lamda=2.0, k=10)
    assert timer.rate.low < timer.capped_rate < timer.rate.high
    phis = random.Random(3)
    early = [run_of_adaptive(2.0, 10, [phis.gauss(0, 1) for _ in range(100)], "reference") for _ in range(100)]
    audits = [trigger_test(run, lamda=2.0, k=10, draws=200) for run in early]
    assert np.mean([audit.rate.value for audit in audits]) > 1.2 * audits[0].capped_rate


def test_the_interval_covers_the_null_over_seeds() -> None:
    inside = 0
    for seed in range(100):
        found = trigger_test(run_of_timer(1.0, 10, 600, seed), lamda=1.0, k=10, draws=400, seed=seed)
        inside += found.rate.low <= found.null_rate <= found.rate.high
    assert 90 <= inside < 100


def test_the_adaptive_trigger_on_noise_has_the_rate_of_the_null_and_on_a_drift_has_not() -> None:
    noise = random.Random(1)
    phis = [noise.gauss(0, 0.1) for _ in range(10000)]
    still = trigger_test(run_of_adaptive(1.0, 10, phis), lamda=1.0, k=10)
    assert still.chance.value == pytest.approx(still.null_chance, rel=0.06)
    against = trigger_test(run_of_adaptive(1.0, 10, [phi - 0.1 for phi in phis]), lamda=1.0, k=10)
    assert against.rate.low > against.null_rate


@given(st.floats(0, 4), st.integers(1, 30))
def test_the_null_is_a_geometric_law_cut_off_at_the_cap(lamda: float, k: int) -> None:
    found = trigger_test([True] * 11, lamda=lamda, k=k)
    p = math.erfc(lamda / math.sqrt(2)) / 2
    assert found.null_chance == pytest.approx(p, rel=1e-12)
    mean = (1 - (1 - p) ** k) / p
    assert found.null_rate == pytest.approx(1 / mean, rel=1e-9)
    assert found.null_runs.sum() == pytest.approx(10, rel=1e-12)
    lengths = np.arange(1, k + 1)
    assert found.null_runs @ lengths / 10 == pytest.approx(mean, rel=1e-9)


def against_noise(phis: list[float], rule: str) -> TriggerTest:
    """The audit of the optimizer's own trigger with its default threshold and cap, by what it recorded."""
    state, synced, thresholds = TriggerState(), [], []
    for phi in phis:
        found = adaptive(state, phi, k=10, alpha=0.1, beta=0.99, lamda=2.0, gamma=1.0, rule=rule)
        state = found.after
        synced.append(found.sync)
        thresholds.append(found.threshold)
    return trigger_test(synced, lamda=2.0, k=10, chances=noise_chances(phis, thresholds), draws=2)


@pytest.mark.parametrize("rule", ["reference", "lagged"])
@pytest.mark.parametrize("steps", [60, 400])
@pytest.mark.parametrize("kind", ["white", "shrinking", "heavy"])
def test_noise_of_any_size_is_told_from_a_trigger_no_more_often_than_said(rule: str, steps: int, kind: str) -> None:
    generator, count = np.random.default_rng(0), 150
    draw = generator.standard_t(3, (count, steps)) if kind == "heavy" else generator.standard_normal((count, steps))
    size = np.linspace(0.3, 0.03, steps) if kind == "shrinking" else 0.1
    found = [against_noise(phis, rule) for phis in (size * draw).tolist()]
    more = sum(one.share.low > one.null_share for one in found)
    less = sum(one.share.high < one.null_share for one in found)
    assert max(more, less) <= 9  # 2.5 % of 150 are 3.8, and 2.7 standard deviations
    fired = sum(one.runs[:-1].sum() for one in found)
    expected = sum(one.null_runs[:-1].sum() for one in found)
    assert fired == pytest.approx(expected, abs=4 * math.sqrt(expected))


@pytest.mark.parametrize("rule", ["reference", "lagged"])
def test_a_phi_that_lies_below_zero_is_told_from_noise(rule: str) -> None:
    generator = np.random.default_rng(0)
    found = [against_noise((0.25 * generator.standard_normal(1000) - 0.08).tolist(), rule) for _ in range(20)]
    assert all(one.share.low > 0.5 for one in found)
    assert all(one.chance.value > 1.2 * one.null_chance for one in found)


def test_noise_may_fire_where_it_is_larger_than_the_threshold_on_either_side() -> None:
    phi, thresholds = [None, 0.3, -0.3, 0.1, 0.2, -0.1], [-0.2, -0.2, -0.2, -0.2, None, 0.0]
    assert noise_chances(phi, thresholds).tolist() == [0, 0.5, 0.5, 0, 0, 0.5]
    with pytest.raises(ProbeError, match="2 phi and 1 thresholds"):
        noise_chances([0.1, 0.2], [0.1])
    with pytest.raises(ProbeError, match=r"a threshold is 0\.1"):
        noise_chances([0.1], [0.1])


def test_the_runs_of_noise_follow_from_the_chance_of_each_step() -> None:
    synced = [True, False, True, True, False, False, True]
    found = trigger_test(synced, lamda=2.0, k=3, chances=[0, 0, 0.5, 0.5, 0.5, 0, 0])
    # From step 0: not at 1, then at 2 or at the cap; from 2: at 3, else at 4, else the cap; from 3: at 4, else the cap.
    assert found.null_runs.tolist() == [0 + 0.5 + 0.5, 0.5 + 0.25, 0.5 + 0.25 + 0.5]
    assert found.null_rate == pytest.approx(3 / (1 + 2 * 0.75 + 3 * 1.25))
    assert (found.share.value, found.share.samples, found.null_share) == (pytest.approx(2 / 3), 3, 0.5)
    assert found.null_chance == pytest.approx(1.5 / 5)


def test_the_interval_of_the_share_is_that_of_a_binomial() -> None:
    found = trigger_test([True] * 11, lamda=0.0, k=2, chances=[0.5] * 11).share  # ten of ten
    assert (found.value, found.low, found.high) == (1.0, pytest.approx(0.025 ** (1 / 10)), 1.0)


def test_a_periodic_trigger_never_fires_by_itself() -> None:
    found = trigger_test([t % 5 == 0 for t in range(101)], lamda=1.0, k=5)
    assert (found.rate.value, found.rate.low, found.rate.high) == (0.2, 0.2, 0.2)
    assert (found.chance.value, found.chance.low) == (0.0, 0.0)
    assert found.chance.high == pytest.approx(1 - 0.025 ** (1 / 80))  # at none of 4 steps in 20 runs
    assert math.isnan(found.chance.stderr)
    assert found.runs.tolist() == [0, 0, 0, 0, 20]


def test_a_trigger_that_fires_at_every_step_before_the_cap_is_not_known_to_be_certain() -> None:
    found = trigger_test([True] * 41, lamda=1.0, k=5).chance
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 40))


def test_a_second_gradient_at_every_step_leaves_the_chance_a_gap() -> None:
    found = trigger_test([True] * 20, lamda=1.0, k=1)
    assert (found.rate.value, found.null_rate) == (1.0, 1.0)
    assert math.isnan(found.chance.value)


def test_the_unfinished_run_at_the_end_is_left_out() -> None:
    steps = [True, False, True, False, True]
    whole, more = (trigger_test([*steps, *tail], lamda=1.0, k=4) for tail in ([], [False, False]))
    assert whole.rate == more.rate
    assert math.isnan(trigger_test([True, False, True], lamda=1.0, k=4).rate.value)
    assert math.isnan(trigger_test([], lamda=1.0, k=4).rate.value)


def test_white_noise_stays_in_its_band_and_an_autoregressive_phi_leaves_it() -> None:
    generator = np.random.default_rng(0)
    noise = generator.standard_normal(4000)
    white = phi_memory(noise.tolist(), lags=range(1, 101))
    assert 90 <= (np.abs(white.autocorrelation) < white.band).sum() < 100
    phi = [noise[0]]
    for x in noise[1:]:
        phi.append(0.6 * phi[-1] + 0.8 * x)
    found = phi_memory(phi, lags=(1, 2, 3))
    assert found.autocorrelation == pytest.approx([0.6, 0.36, 0.216], abs=0.04)
    assert found.band == pytest.approx(1.96 / math.sqrt(4000), rel=1e-3)


def test_steps_without_phi_are_left_out_of_both_sums() -> None:
    phi = [1.0, -1.0] * 50
    holes: list[float | None] = [None if t % 10 == 3 else value for t, value in enumerate(phi)]
    found = phi_memory(holes, lags=(1, 2, 10))
    assert found.autocorrelation == pytest.approx([-1.0, 1.0, 1.0], abs=0.05)
    assert found.band == pytest.approx(1.96 / np.sqrt([79, 78, 81]), rel=1e-12)
    assert np.isnan(phi_memory([0.5] * 9, lags=(1,)).autocorrelation).all()
    assert np.isnan(phi_memory([0.1, 0.2], lags=(7,)).autocorrelation).all()
    assert np.isnan(phi_memory([], lags=(1,)).band).all()


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match=r"a run of 4 steps .* longer than the cap k=3"):
        trigger_test([True, False, False, False, True], lamda=1.0, k=3)
    with pytest.raises(ProbeError, match="k=0 is out of range"):
        trigger_test([True], lamda=1.0, k=0)
    with pytest.raises(ProbeError, match="lamda=-1 is out of range"):
        trigger_test([True], lamda=-1.0, k=2)
    with pytest.raises(ProbeError, match=r"chances of shape \(1,\) do not fit 2 steps"):
        trigger_test([True, True], lamda=1.0, k=2, chances=[0.5])
    with pytest.raises(ProbeError, match="pass phi and threshold of every step"):
        trigger_test([True, True, True], lamda=1.0, k=2, chances=[0.5, 0.0, 0.5])
    with pytest.raises(ProbeError, match=r"lags=\(0,\) are out of range"):
        phi_memory([0.1], lags=(0,))
