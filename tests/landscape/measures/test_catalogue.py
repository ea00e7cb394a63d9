"""The catalogue: one entry per group of measures, known to selection, schedule, cost and reports."""

from __future__ import annotations

import pytest

from lossscope.landscape.errors import ConfigError
from lossscope.landscape.measures.catalogue import (
    GROUPS,
    group_of,
    known_measures,
    recorded_groups,
    register,
    reports_of,
)
from lossscope.landscape.measures.measure import Bound, Measure
from lossscope.landscape.measures.measure_group import Evaluation, MeasureGroup, Schedule
from lossscope.landscape.reprobe.selection import select_measures

KNOWN = known_measures()


def test_names_are_unique_and_none_is_the_name_of_another_group():
    assert len(KNOWN) == sum(len(group.measures) for group in GROUPS.values())
    assert all(group_of(name) == name for name in KNOWN if name in GROUPS)


def test_the_bound_of_an_extreme_eigenvalue_says_which_side_is_open():
    assert "never above the eigenvalue" in KNOWN["lambda_max"].bound
    assert "no eigenvalue lies above value + bound" in KNOWN["lambda_max"].bound
    assert "never below the eigenvalue" in KNOWN["lambda_min"].bound
    assert "no eigenvalue lies below value - bound" in KNOWN["lambda_min"].bound
    assert "95 % confidence" in KNOWN["lambda_max"].bound


def test_a_row_of_a_block_belongs_to_the_group_that_measures_blocks():
    assert group_of("trace") == "spectrum"
    assert group_of("trace", "0.weight") == "per_module"
    assert group_of("a measure of a later version") == "a measure of a later version"


def test_a_name_stands_for_a_measure_or_for_all_of_a_group():
    assert select_measures(["trace", "metric"], "lossscope") == {
        "spectrum": ("trace",),
        "metric": ("preconditioned_sharpness", "preconditioned_edge_ratio"),
    }
    assert set(select_measures(None, "lossscope")) == {
        "loss",
        "spectrum",
        "metric",
        "adaptive",
        "balanced",
        "log_fisher_rao",
        "logits",
        "radial",
    }
    assert select_measures(None, "pyhessian") == {"spectrum": ("lambda_max", "trace")}


@pytest.mark.parametrize(
    ("names", "engine", "words"),
    [
        (["hessian"], "lossscope", "unknown measure 'hessian'"),
        (["sampling_eror"], "lossscope", "did you mean sampling_error"),
        (["direction"], "lossscope", "needs the step that was taken"),
        (["spectrum"], "pyhessian", "pyhessian has no lambda_min: ask for lambda_max"),
    ],
)
def test_a_name_that_cannot_be_measured_is_refused(names, engine, words):
    with pytest.raises(ConfigError, match=words):
        select_measures(names, engine)


def dummy(name="dummy", **declared) -> MeasureGroup:
    measure = Measure(name, "1", Bound.EXACT, "none", "a measure of this test")
    return MeasureGroup(name, (measure,), run=lambda panel, names: {}, **declared)


@pytest.fixture
def catalogue():
    """Forget the groups that a test registers."""
    before = dict(GROUPS)
    yield
    GROUPS.clear()
    GROUPS.update(before)


@pytest.mark.usefixtures("catalogue")
def test_a_registered_group_is_known_to_selection_cost_schedule_and_reports_and_forgotten_with_its_entry():
    register(dummy(recorded=Schedule(3, lambda evaluation: ("dummy",)), usual=True, reports=("flatness",)))
    assert known_measures()["dummy"].unit == "1"
    assert select_measures(["dummy"], "lossscope") == {"dummy": ("dummy",)}
    assert "dummy" in select_measures(None, "lossscope")
    assert group_of("dummy") == "dummy"
    assert reports_of([("dummy", None)]) == ("flatness",)
    places = [group.name for _, group in recorded_groups()]
    assert places.index("log_fisher_rao") < places.index("dummy") < places.index("logits")
    del GROUPS["dummy"]
    assert "dummy" not in known_measures()


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    ("group", "words"),
    [
        (dummy("trace"), "'trace' is already in the catalogue"),
        (dummy("spectrum"), "'spectrum' is already in the catalogue"),
        (dummy(reports=("dynamics",)), "others have no table for a new measure"),
        (dummy(reports=()), "must name at least one report"),
        (dummy(reports=("typo",), own_table=True), "must be among .*, got 'typo'"),
        (MeasureGroup("dummy", (), run=lambda panel, names: {}), "needs at least one measure"),
    ],
)
def test_an_entry_that_cannot_be_shown_or_told_apart_is_refused(group, words):
    before = dict(GROUPS)
    with pytest.raises(ConfigError, match=words):
        register(group)
    assert before == GROUPS


def test_the_reports_named_are_the_fewest_that_show_everything():
    assert reports_of([("lambda_max", None), ("loss", None)]) == ("sharpness",)
    assert reports_of([("adaptive_trace", None), ("loss", None)]) == ("flatness",)
    assert set(reports_of([("adaptive_trace", None), ("trace", "0.weight")])) == {"flatness", "sharpness"}
    assert reports_of([("gradient_cosine", None)]) == ("dynamics",)


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("long", [False, True])
def test_only_measures_of_the_group_are_scheduled_and_the_eigenvalues_only_unless_tracked(long, tracked):
    evaluation = Evaluation(long=long, stepped=True, eigenvalues=5, tracked=tracked)
    due = {group.name: set(schedule.names(evaluation)) for schedule, group in recorded_groups()}
    assert all(names <= set(GROUPS[group].names) for group, names in due.items())
    assert ("lambda_max" in due["spectrum"]) is not tracked
    assert bool(due["metric"]) is long
    assert not any(due[group] for group in ("metric", "alignment") if not long)
    first = Evaluation(long=True, stepped=False, eigenvalues=5, tracked=tracked)
    assert not any(
        schedule.names(first) for schedule, group in recorded_groups() if group.name in ("metric", "direction")
    )
