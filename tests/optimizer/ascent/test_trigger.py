"""The trigger: the decision to take a second gradient."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given, settings, strategies as st

from lossscope.optimizer.ascent.trigger import TriggerState, adaptive, decided, periodic

USUAL = {"k": 10, "alpha": 0.1, "beta": 0.99, "lamda": 2.0, "gamma": 2.0, "rule": "reference"}


@given(k=st.integers(1, 9), steps=st.integers(1, 40))
@settings(deadline=None)
def test_the_period_syncs_at_step_one_and_every_k_steps_after(k, steps):
    state, synced = TriggerState(), []
    for _ in range(steps):
        decision = periodic(state, k=k, alpha=0.1)
        state = decision.after
        if decision.sync:
            synced.append(state.clock)
    assert synced == [t for t in range(1, steps + 1) if (t - 1) % k == 0]
    assert (state.clock, state.syncs, state.last_sync) == (steps, len(synced), synced[-1])


@given(counts=st.lists(st.integers(0, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_replay_takes_the_given_number_in_each_window_and_one_at_step_one(counts, seed):
    given = {"mode": "timer", "k": 3, "alpha": 0.1, "shear": "looksam", "seed": seed}
    given |= {"replay_counts": tuple(counts), "replay_window": 7}
    state, synced = TriggerState(), []
    for _ in range(7 * len(counts) + 14):
        decision = decided(given, state, None, takes_second_gradient=True)
        assert decision == decided(given, state, 0.5, takes_second_gradient=True)  # a resumed run draws the same
        state = decision.after
        synced.append(decision.sync)
    taken = [sum(synced[7 * i : 7 * i + 7]) for i in range(len(counts) + 2)]
    assert synced[0]
    assert taken == [max(counts[0], 1), *counts[1:], *[max(counts[-1], 0)] * 2]


def test_a_replay_takes_its_steps_at_random():
    given = {"mode": "timer", "k": 3, "alpha": 0.1, "shear": "looksam", "replay_counts": (4, 4), "replay_window": 20}
    drawn = {
        tuple(
            decided({**given, "seed": seed}, TriggerState(clock=clock), None, takes_second_gradient=True).sync
            for clock in range(20, 40)
        )
        for seed in range(200)
    }
    assert len(drawn) > 190
    shares = [sum(one[place] for one in drawn) / len(drawn) for place in range(20)]
    assert all(0.08 < share < 0.34 for share in shares)  # 0.2 within 5 standard errors


def test_the_first_step_syncs_and_measures_no_phi():
    decision = adaptive(TriggerState(), None, **USUAL)
    assert decision.sync
    assert decision.phi is None
    assert decision.after == TriggerState(clock=1, last_sync=1, syncs=1, phi_variance=0.0, phi_count=0)


def test_the_step_after_a_sync_leaves_the_variance_alone():
    decision = adaptive(TriggerState(clock=1, last_sync=1, syncs=1), 0.5, **USUAL)
    assert decision.after.phi_variance == 0.0
    assert not decision.sync


def test_by_the_reference_rule_any_negative_phi_triggers_before_a_variance_exists():
    state = TriggerState(clock=1, last_sync=1, syncs=1)
    assert adaptive(state, -1e-9, **USUAL).sync
    assert not adaptive(state, -1e-9, **{**USUAL, "rule": "lagged"}).sync


def test_the_variance_already_contains_the_present_phi_by_the_reference_rule():
    state = TriggerState(clock=5, last_sync=2, syncs=1, phi_variance=0.04, phi_count=2)
    decision = adaptive(state, -0.3, **USUAL)
    variance = 0.99 * 0.04 + 0.01 * 0.09
    assert decision.after.phi_variance == pytest.approx(variance, rel=1e-15)
    assert decision.threshold == pytest.approx(-2 * math.sqrt(variance), rel=1e-15)
    assert not decision.sync
    assert adaptive(state, -0.5, **USUAL).sync


def test_the_lagged_rule_compares_with_the_corrected_variance_of_the_steps_before():
    state = TriggerState(clock=5, last_sync=2, syncs=1, phi_variance=(1 - 0.99**2) * 0.04, phi_count=2)
    decision = adaptive(state, -0.39, **{**USUAL, "rule": "lagged"})
    assert decision.threshold == pytest.approx(-2 * 0.2, rel=1e-12)
    assert not decision.sync
    assert adaptive(state, -0.41, **{**USUAL, "rule": "lagged"}).sync


def test_the_interval_never_exceeds_k():
    state = TriggerState()
    for _ in range(50):
        state = adaptive(state, 0.3, **{**USUAL, "k": 7}).after
        assert state.clock - state.last_sync < 7
    assert state.syncs == 8  # 1, 8, ..., 50


@pytest.mark.parametrize("rule", ["reference", "lagged"])
def test_a_phi_on_the_threshold_does_not_trigger(rule):
    state = TriggerState(clock=3, last_sync=2, syncs=1)
    assert not adaptive(state, 0.0, **{**USUAL, "rule": rule}).sync
    assert not adaptive(state, 0.0, **{**USUAL, "rule": rule, "lamda": 0.0}).sync


def test_the_alpha_grows_with_a_positive_phi_only():
    state = TriggerState(clock=3, last_sync=2, syncs=1)
    assert adaptive(state, 0.5, **USUAL).alpha == pytest.approx(0.1 * 1.5**2, rel=1e-15)
    assert adaptive(state, -0.5, **USUAL).alpha == 0.1


def test_lambda_zero_triggers_on_the_sign():
    state = TriggerState(clock=3, last_sync=2, syncs=1, phi_variance=0.04, phi_count=1)
    for rule in ("reference", "lagged"):
        options = {**USUAL, "lamda": 0.0, "rule": rule}
        assert adaptive(state, -1e-6, **options).sync
        assert not adaptive(state, 1e-6, **options).sync


@pytest.mark.parametrize("rule", ["reference", "lagged"])
@pytest.mark.parametrize(
    ("lamda", "cap", "published"), [(0.1, 10, 2.17), (0.5, 10**9, 3.24), (1.0, 5, 3.65), (2.0, 10, 9.04)]
)
def test_fed_with_noise_it_syncs_as_often_as_a_timer_that_noise_triggers(lamda, cap, published, rule):
    """The published effective_k are those of phi ~ N(0, s^2): the rate holds no evidence of drift."""
    p = NormalDist().cdf(-lamda)
    expected = (1 - (1 - p) ** cap) / p
    assert expected == pytest.approx(published, abs=0.01)
    noise, state = random.Random(4), TriggerState()
    steps = 40_000
    for _ in range(steps):
        options = {**USUAL, "k": cap, "lamda": lamda, "rule": rule}
        state = adaptive(state, noise.gauss(0.0, 0.07), **options).after
    # A step's decision is a coin of variance below p (1 - p) + 1 / cap: four standard errors of the rate. The
    # variance is a mean over about 100 phi, so the threshold moves by 7 %, and p with it: 1 % at most, second order.
    rate = state.syncs / steps
    assert rate == pytest.approx(1 / expected, abs=4 * math.sqrt(rate * (1 - rate) / steps) + 0.01 * rate)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.sampled_from(["reference", "lagged"]))
@settings(deadline=None)
def test_whatever_phi_does_the_counters_stay_consistent(phis, rule):
    state = TriggerState()
    for phi in phis:
        decision = adaptive(state, phi, **{**USUAL, "rule": rule})
        assert decision.after.clock == state.clock + 1
        assert decision.after.syncs == state.syncs + decision.sync
        assert decision.after.last_sync == (decision.after.clock if decision.sync else state.last_sync)
        assert decision.after.phi_variance >= 0
        assert decision.threshold <= 0
        state = decision.after


def test_the_state_goes_through_a_parameter_group():
    group: dict[str, object] = {}
    state = TriggerState(3, 2, 1, 0.5, 1)
    state.write(group)
    assert TriggerState.read(group) == state
