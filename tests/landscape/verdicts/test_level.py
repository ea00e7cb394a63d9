"""Values at a training loss: first crossing, interpolation in logarithms, and gaps that are named."""

from __future__ import annotations

import math

import pytest

from lossscope.landscape.verdicts.level import (
    Crossing,
    Value,
    crossing,
    evaluations_of,
    loss_name,
    lowest_level,
    rounded_up,
    spent,
    value,
)
from lossscope.landscape.verdicts.verdict import Reason


def at(run, level=0.02) -> Crossing:
    found = crossing(run, level, "loss")
    assert isinstance(found, Crossing)
    return found


@pytest.mark.parametrize("level", [0.5, 0.1, 0.02, 0.0123])
def test_a_power_of_the_loss_is_read_exactly_at_every_level(made, level) -> None:
    run = made.run(scale=3.0)
    found = value(run, at(run, level), "adaptive_trace")
    assert isinstance(found, Value)
    assert found.log == pytest.approx(math.log(3.0 * level**0.5), abs=1e-12)


def test_the_first_crossing_counts_though_the_loss_rises_again(made) -> None:
    run = made.run(losses=(1.0, 0.1, 0.4, 0.01))
    assert (at(run, 0.2).before, at(run, 0.2).after) == (0, 1)


def test_a_level_that_is_met_exactly_is_that_evaluation(made) -> None:
    run = made.run(losses=(1.0, 0.1, 0.01))
    assert at(run, 0.1) == Crossing(0, 1, 1.0, 10.0, pytest.approx(10.0))


MISSING = {
    "never": ((1.0, 0.5), "MISSING_LEVEL", "lowest 0.5"),
    "at the first": ((0.01, 0.005), "MISSING_LEVEL", "first evaluation"),
    "no losses": ((float("nan"), float("inf")), "NOT_MEASURED", "no training loss"),
    "a loss of zero": ((1.0, 0.0), "NOT_POSITIVE", "training loss 0 at step 10"),
}


@pytest.mark.parametrize(("losses", "code", "words"), MISSING.values(), ids=MISSING)
def test_a_run_without_a_crossing_says_why(made, losses, code, words) -> None:
    found = crossing(made.run(losses=losses), 0.02, "loss")
    assert isinstance(found, Reason)
    assert (found.code, found.runs) == (code, ("a-s0",))
    assert words in found.text


def test_infinite_and_missing_losses_are_no_evaluations(made) -> None:
    run = made.run(losses=(2.0, float("inf"), 0.1, float("nan"), 0.01))
    found = at(run, 0.05)
    assert (evaluations_of(run).losses("loss")[found.before], evaluations_of(run).losses("loss")[found.after]) == (
        0.1,
        0.01,
    )


@pytest.mark.parametrize(("number", "code"), [(None, "NOT_MEASURED"), (0.0, "NOT_POSITIVE"), (-1.0, "NOT_POSITIVE")])
def test_a_value_beside_the_level_that_is_missing_or_not_positive_is_a_reason(made, number, code) -> None:
    def changed(row):
        return {**row, "value": number} if (row["measure"], row["step"]) == ("adaptive_trace", 40) else row

    run = made.run(changed=changed)
    found = value(run, at(run), "adaptive_trace")
    assert isinstance(found, Reason)
    assert found.code == code
    assert "40" in found.text
    assert isinstance(value(run, at(run, 0.5), "adaptive_trace"), Value)  # a gap elsewhere does not matter


def test_steps_at_which_only_the_loss_is_known_are_no_evaluations(made) -> None:
    def changed(row):
        return None if row["step"] == 40 and row["measure"] != "loss" else row

    run = made.run(changed=changed)
    assert evaluations_of(run).steps.tolist() == [0, 10, 20, 30, 50]
    assert isinstance(value(run, at(run), "adaptive_trace"), Value)


def test_the_error_is_that_of_the_interpolated_logarithm(made) -> None:
    run = made.run(losses=(1.0, 0.1, 0.001))
    found = value(run, at(run, 0.01), "adaptive_trace")
    assert isinstance(found, Value)
    assert found.error == pytest.approx(1e-3 * math.hypot(0.5, 0.5))


def test_an_interval_stands_for_a_missing_standard_error(made) -> None:
    def changed(row):
        return {**row, "stderr": None, "low": 0.9 * row["value"], "high": 1.1 * row["value"], "converged": False}

    run = made.run(losses=(1.0, 0.01), changed=changed)
    found = value(run, at(run, 0.01), "lambda_max")
    assert isinstance(found, Value)
    assert found.error == pytest.approx(0.1 / 1.96, rel=1e-4)
    assert found.unconverged


def test_the_loss_on_all_training_data_is_read_where_every_run_has_it(made) -> None:
    with_it = made.run()
    assert loss_name([with_it]) == "loss"

    def both(row):
        return {**row, "measure": "train_loss"} if row["measure"] == "loss" else row

    other = made.run(seed=1, changed=both)
    assert loss_name([other]) == "train_loss"
    assert loss_name([with_it, other]) == "loss"
    lost = made.run(seed=2, changed=lambda row: None if row["measure"] == "loss" else row)
    assert loss_name([other, lost]) == "train_loss"
    assert loss_name([with_it, lost]) == "loss"


ROUNDED = [
    (0.0123, 0.02),
    (0.3, 0.3),
    (0.31, 0.4),
    (0.95, 1.0),
    (1.0, 1.0),
    (0.00021, 0.0003),
    (7.01, 8.0),
    (96.0, 100.0),
]


@pytest.mark.parametrize(("number", "up"), ROUNDED)
def test_a_level_is_rounded_up_to_one_digit(number, up) -> None:
    assert rounded_up(number) == up


def test_the_lowest_level_is_one_that_all_runs_reach(made) -> None:
    runs = [made.run(losses=(1.0, 0.5, low, 0.9)) for low in (0.011, 0.0137, 0.002)]
    assert lowest_level(runs, "loss") == 0.02
    assert all(isinstance(crossing(run, 0.02, "loss"), Crossing) for run in runs)
    assert lowest_level([*runs, made.run(losses=(1.0, 0.0))], "loss") is None
    assert lowest_level([*runs, made.run(losses=())], "loss") is None
    assert lowest_level([], "loss") is None


def test_gradients_and_ascents_are_counted_up_to_the_level(made) -> None:
    plain, ascending = made.run(), made.run(passes=2)
    step = at(plain).step
    assert spent(plain, step) == (pytest.approx(step), 0.0)
    assert spent(ascending, step) == (pytest.approx(2 * step), pytest.approx(step))
    bare = made.run(more={"steps": [{"step": k, "synced": k % 2 == 0} for k in range(1, 51)]})
    assert spent(bare, 40.0) == (60.0, 20.0)
    unknown = made.run(more={"steps": [{"step": 1}]})
    assert all(math.isnan(one) for one in spent(unknown, 1.0))
