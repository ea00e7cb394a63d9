"""Divergence: found where a loss is lost or rises far above its start, and nowhere else."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lossscope.landscape.analysis.divergence import divergence_of, first_divergence

nan, inf = math.nan, math.inf


def found(losses):
    steps = np.arange(1, len(losses) + 1)
    with np.errstate(all="ignore"):
        return first_divergence(steps, np.array(losses, dtype=np.float64))


LOST = {
    "infinite from step 2": ([2.3, inf, inf], 2),
    "nan from step 3": ([2.3, 2.2, nan, nan], 3),
    "infinite once": ([2.3, inf, 2.2, 2.1], 2),
    "infinite, then nan": ([2.3, 9.0, inf, nan], 3),
    "never finite": ([inf, nan, nan], 1),
    "nan after losses at every fifth step": ([2.0 if k % 5 == 0 else nan for k in range(1, 51)] + [nan] * 20, 51),
}


@pytest.mark.parametrize(("losses", "step"), LOST.values(), ids=LOST)
def test_a_loss_that_is_no_longer_finite_is_found_at_its_first_step(losses, step):
    one = found(losses)
    assert (one.finite, one.step) == (False, step)


RISEN = {
    "from 2.3 to 70 in four steps": ([2.3, 12.0, *[70.0] * 38], 2),
    "tenfold each step to 1e307": ([10.0**k for k in range(1, 308)], 2),
    "slowly": ([2.0 + 0.1 * k for k in range(200)], 52),
    "and back, a catapult": ([2.3] * 20 + [40.0] * 30 + [0.1] * 150, 21),
    "below zero at the start": ([-2.0] * 20 + [4.0] * 20, 21),
    "from a loss near 0": ([1e-6] * 50 + [0.5] * 50, 51),
    "1e308": ([1.0, 1e308, 1.7e308], 2),
}


@pytest.mark.parametrize(("losses", "step"), RISEN.values(), ids=RISEN)
def test_a_loss_far_above_its_start_is_found_at_the_step_where_it_got_there(losses, step):
    one = found(losses)
    assert (one.finite, one.step) == (True, step)
    assert one.start == losses[0]
    assert one.highest == max(losses)


generator = np.random.default_rng(0)
QUIET = {
    "nothing": [],
    "missing throughout": [nan] * 5,
    "exactly zero, then rounding": [0.0] * 20 + [1e-15] * 20,
    "falling": [2.3 / k for k in range(1, 100)],
    "noisy batches of a fitted network": (1e-2 * generator.lognormal(0, 1.5, 400)).tolist(),
    "two spikes of single batches": [2.0] * 50 + [50.0] + [1.0] * 50 + [80.0] + [0.5] * 50,
    "negative throughout": [-3.0 + 0.1 * k for k in range(20)],
    "passed at every tenth step only": [2.0 if k % 10 == 0 else nan for k in range(1, 60)],
    "missing at one step": [2.0, nan, 1.9, 1.8],
    "logits of twice the size": [10.9] * 20 + [20.0] * 20,
}


@pytest.mark.parametrize("losses", QUIET.values(), ids=QUIET)
def test_a_loss_that_does_neither_is_left_alone(losses):
    assert found(losses) is None


def test_a_run_without_batch_losses_is_judged_by_its_loss_on_the_fixed_data(write_run):
    def without(table, row):
        if table == "probes" and row["measure"] == "loss" and row["step"] >= 16:
            return {**row, "value": 500.0}
        return {**row, "loss": None} if table == "steps" else row

    assert divergence_of(write_run("a")) is None
    one = divergence_of(write_run("b", rows=without))
    assert one is not None
    assert (one.finite, one.step) == (True, 16)
