"""Recording schedule and recording overhead."""

from __future__ import annotations

import contextlib
import math
import re
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.recording.cadence import PRESETS, Cadence, Preset, Spacing, geometric_step, log_spaced
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


def test_log_spacing_may_start_late_and_moves_down_where_there_are_too_few_steps() -> None:
    steps = log_spaced(1500, 20, 30)
    assert (steps[0], steps[1], steps[-1], len(steps)) == (0, 30, 1500, 20)
    assert max(b / a for a, b in pairwise(steps[1:])) / min(b / a for a, b in pairwise(steps[1:])) < 1.1
    assert log_spaced(10, 10, 8) == (0, 2, 3, 4, 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize("spacing", ["log", "linear"])
def test_a_planned_run_is_due_for_exactly_its_evaluations(spacing: Spacing) -> None:
    cadence = Cadence(STANDARD, 400, 20, 0, spacing=spacing)
    due = [step for step in range(401) if cadence.evaluation(step)]
    assert len(due) == 20
    assert (due[0], due[-1]) == (0, 400)
    assert due[1] == (8 if spacing == "log" else 21)
    assert [step for step in due if cadence.last(step)] == [400]
    cadence.postpone(8)  # moves nothing: the schedule is fixed
    assert [step for step in range(401) if cadence.evaluation(step)] == due


def test_given_steps_replace_the_schedule() -> None:
    cadence = Cadence(STANDARD, None, None, 0, evaluate_at=[30, 5, 30])
    assert [step for step in range(100) if cadence.evaluation(step)] == [5, 30]
    assert cadence.long(5)
    assert not cadence.takes_last
    assert (cadence.given_after(4), cadence.given_after(5), cadence.given_after(30)) == ((5, 30), (30,), ())
    assert Cadence(STANDARD, 100, None, 0).given_after(4) == ()


@pytest.mark.parametrize("steps", [np.linspace(0, 30, 4).astype(int), torch.arange(0, 31, 10), range(0, 31, 10)])
def test_given_steps_are_integers_of_any_library(steps: Any) -> None:
    cadence = Cadence(STANDARD, None, None, 0, evaluate_at=steps)
    assert [step for step in range(100) if cadence.evaluation(step)] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evaluate_at": [3, 101]}, "evaluate_at must lie within the 100 planned steps, got 101; raise steps="),
        ({"evaluate_at": [-1]}, "evaluate_at must be step numbers of at least 0, got -1"),
        ({"evaluate_at": [2.5]}, "evaluate_at must be step numbers of at least 0, got 2.5"),
        ({"evaluate_at": [True]}, "evaluate_at must be step numbers of at least 0, got True"),
        ({"evaluate_at": "12"}, "evaluate_at must be step numbers of at least 0, got '1'"),
        (
            {"evaluate_at": torch.ones(2, 2).long()},
            "evaluate_at must be step numbers of at least 0, got tensor([1, 1])",
        ),
        ({"evaluate_at": 5}, "evaluate_at must be a list of step numbers, got 5"),
        ({"evaluate_at": range(10**15)}, "evaluate_at has more than 100000 steps: leave some out"),
        ({"spacing": "cubic"}, "spacing must be one of 'log', 'linear', got 'cubic'"),
    ],
)
def test_bad_schedules_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Cadence(STANDARD, 100, None, 0, **settings)


def test_the_distance_between_the_evaluations_of_an_unplanned_run_grows() -> None:
    cadence = Cadence(STANDARD, None, None, 0)
    made = []
    for step in range(5000):
        if cadence.evaluation(step):
            made.append(step)
            cadence.schedule_next(step)
    assert made[:3] == [0, 10, 15]
    assert all(later == math.ceil(STANDARD.growth * earlier) for earlier, later in pairwise(made[1:]))
    due = math.ceil(STANDARD.growth * made[-1])
    cadence.postpone(due)
    assert not cadence.evaluation(due)
    assert cadence.evaluation(math.ceil(STANDARD.growth * due))


def test_the_periods_of_tensors_and_spectra_are_lengthened_together() -> None:
    cadence = Cadence(STANDARD, None, 0, 0)
    assert cadence.lengthen(4) == (10, 40)
    assert cadence.lengthen(2) == (40, 80)
    assert [step for step in range(90, 300) if cadence.tensors(step) and step % 100] == [160, 240]
    assert [step for step in range(2, 2000) if cadence.spectra(step)] == [800, 1600]


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
