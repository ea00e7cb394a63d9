"""Recording schedule and recording overhead."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from lossscope.landscape.recording.cadence import PRESETS, Cadence, Preset, geometric_step, log_spaced
from lossscope.landscape.recording.overhead import Overhead

STANDARD = PRESETS["standard"]


@given(last=st.integers(1, 100_000), count=st.integers(2, 60))
def test_log_spaced_steps_are_distinct_ascending_and_include_both_ends(last: int, count: int) -> None:
    steps = log_spaced(last, count)
    assert len(steps) == min(count, last + 1)
    assert list(steps) == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == last


def test_log_spaced_steps_grow_by_about_equal_ratios_once_they_are_large() -> None:
    steps = log_spaced(100_000, 20)
    ratios = [b / a for a, b in pairwise(steps[8:])]
    assert max(ratios) / min(ratios) < 1.1


def test_log_spacing_of_none_and_of_one() -> None:
    assert log_spaced(100, 0) == ()
    assert log_spaced(100, 1) == (100,)


@given(step=st.integers(0, 10_000), factor=st.floats(1.0, 4.0))
def test_the_geometric_step_always_moves_on(step: int, factor: float) -> None:
    assert geometric_step(step, factor) >= max(step + 1, step * factor)


def test_a_planned_run_makes_exactly_its_evaluations_whatever_they_cost() -> None:
    cadence = Cadence(STANDARD, 400, 20, 0)
    for step in range(401):
        if cadence.evaluation(step):
            cadence.schedule_next(step, spent=1e6, wall=1.0, per_step=1e-3)
    assert sum(map(cadence.evaluation, range(401))) == 20
    assert cadence.evaluation(0)
    assert cadence.evaluation(400)


def test_an_unplanned_run_waits_until_an_evaluation_fits_under_the_cap() -> None:
    cadence = Cadence(STANDARD, None, None, 0)
    spent, wall, per_step, made = 0.0, 0.0, 0.01, []
    for step in range(5000):
        wall += per_step
        if cadence.evaluation(step):
            made.append(step)
            spent += 0.2
            wall += 0.2
            cadence.schedule_next(step, spent, wall, per_step)
    assert made[:2] == [0, 1]
    assert spent / wall <= STANDARD.cap * 1.05
    assert len(made) > 5
    assert all(later >= STANDARD.growth * earlier for earlier, later in pairwise(made[2:]))


def test_zero_requested_evaluations_are_none() -> None:
    assert not any(Cadence(STANDARD, planned, 0, 0).evaluation(step) for planned in (None, 100) for step in range(101))


def test_tensors_and_spectra_are_sampled_at_the_first_step_at_their_period_and_at_evaluations() -> None:
    cadence = Cadence(STANDARD, 200, 3, 0)
    evaluations = {step for step in range(201) if cadence.evaluation(step)}
    sampled = {step for step in range(1, 201) if cadence.spectra(step)}
    assert sampled == ({1} | {100, 200} | evaluations) - {0}
    assert not any(Cadence(PRESETS["economy"], None, 0, 0).spectra(step) for step in range(1, 300))


def test_layers_are_sampled_at_their_own_period_and_tensors_with_them() -> None:
    cadence = Cadence(STANDARD, None, 0, 0)
    layers = [step for step in range(2001) if cadence.layers(step)]
    assert layers == list(range(600, 2001, 600))
    assert all(map(cadence.tensors, layers))
    assert not any(Cadence(PRESETS["economy"], 400, 0, 0).layers(step) for step in range(401))


def test_a_window_has_its_lags_and_none_starts_whose_first_lag_is_beyond_the_end() -> None:
    due = {step: Cadence(STANDARD, 7200, 0, 0).window(step) for step in range(7201)}
    samples = [(600 * number + lag, (number, lag)) for number in range(1, 12) for lag in (0, 1, 5, 20)]
    assert [(step, one) for step, one in due.items() if one] == samples
    assert Cadence(STANDARD, None, 0, 0).window(1200) == (2, 0)
    assert not any(Cadence(PRESETS["economy"], None, 0, 0).window(step) for step in range(301))


def test_a_short_planned_run_has_twenty_layer_samples_and_as_many_windows_as_fit_up_to_ten_whole_ones() -> None:
    for steps, samples, windows in ((400, 20, 11), (1000, 20, 11), (24000, 40, 39), (100, 20, 3), (20, 20, 0)):
        cadence = Cadence(STANDARD, steps, 0, 0)
        assert sum(map(cadence.layers, range(steps + 1))) == samples
        assert (
            sum(cadence.window(step) is not None and cadence.window(step)[1] == 0 for step in range(steps + 1))
            == windows
        )


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_windows_do_not_overlap_and_have_the_lag_of_one_step(preset: Preset) -> None:
    assert (preset.windows_every is None) == (not preset.lags)
    assert preset.windows_every is None or (preset.lags[0] == 1 and preset.lags[-1] < preset.windows_every)


def test_checkpoints_are_log_spaced_where_the_end_is_known() -> None:
    cadence = Cadence(STANDARD, 1000, 0, 0)
    saves = [step for step in range(1001) if cadence.checkpoint(step)]
    assert len(saves) == STANDARD.checkpoints
    assert (saves[0], saves[-1]) == (0, 1000)
    assert not any(map(Cadence(STANDARD, None, 0, 0).checkpoint, range(100)))


def test_the_overhead_is_the_time_of_its_blocks_also_when_one_raises() -> None:
    overhead = Overhead()
    with overhead.counted("curvature"):
        time.sleep(0.02)
    with contextlib.suppress(KeyError), overhead.counted("instruments"):
        time.sleep(0.01)
        raise KeyError("x")
    time.sleep(0.01)
    found = overhead.summary()
    assert found["curvature_seconds"] >= 0.02
    assert found["instruments_seconds"] >= 0.01
    assert found["seconds"] == pytest.approx(found["curvature_seconds"] + found["instruments_seconds"])
    assert found["share"] == pytest.approx(found["seconds"] / found["wall_seconds"])
    assert found["wall_seconds"] - found["seconds"] >= 0.01
    assert "7 steps in" in overhead.sentence(7)
