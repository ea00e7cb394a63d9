"""The sharpness report."""

from __future__ import annotations

import pytest

from lossscope.landscape.measures.catalogue import GROUPS
from lossscope.reports import flatness, overview, sharpness
from lossscope.reports.content import Quantity
from lossscope.reports.sharpness import spectrum_tables


def rows_of(report, key):
    table = next(table for table in report.tables if table.key == key)
    return [dict(zip((column.key for column in table.columns), row, strict=True)) for row in table.rows]


def test_each_run_has_its_last_evaluation_with_errors(demo_runs):
    first = rows_of(sharpness(demo_runs), "runs")[0]
    assert (first["run"], first["step"]) == ("ars2-base-s0", 40)
    assert first["lambda_max"] == Quantity(50.0, error=0.25)
    assert first["trace"] == Quantity(200.0, error=1.5, low=197.0, high=203.0)
    assert first["directional_edge_ratio"].value == 0.5
    assert first["loss"].value == 0.05


def test_each_arm_has_the_median_and_range_of_its_seeds_and_the_error_apart(demo_runs):
    base = rows_of(sharpness(demo_runs), "arms")[0]
    assert base["seeds"] == 2
    assert base["lambda_max"] == Quantity(50.5, low=50.0, high=51.0, known_error=0.25)
    assert base["trace_error"] == 1.5


def test_products_of_one_call_are_counted_once(demo_runs):
    cost = rows_of(sharpness(demo_runs), "cost")[0]
    assert (
        cost["products"] == 8 * (20 + 16 + 16) + 7
    )  # both ends, trace, adaptive trace; one for each step with a direction
    assert cost["evaluations"] == 8
    assert cost["overhead"] == 25


def test_ends_and_trace_of_one_call_are_counted_once_and_of_two_calls_twice(write_run):
    def of_one_call(table, row):
        same = {"products": 20, "seconds": 0.5} if row.get("measure") == "trace" else {}
        return {**row, **same}

    one, two = write_run("one", rows=of_one_call), write_run("two")
    costs = [row["products"] for row in rows_of(sharpness([one, two]), "cost")]
    assert costs == [8 * (20 + 16) + 7, 8 * (20 + 16 + 16) + 7]


def test_the_open_side_of_an_extreme_eigenvalue_is_said_beside_the_numbers(demo_runs):
    report = sharpness(demo_runs)
    beside = {table.key: table.note for table in report.tables} | {one.key: one.caption for one in report.figures}
    for key in ("runs", "lambda_max"):
        assert "lower bound on the largest eigenvalue" in beside[key]
        assert "upper bound on the smallest" in beside[key]


@pytest.mark.parametrize("report", [sharpness, flatness])
def test_the_train_loss_is_that_of_the_fixed_data_and_not_of_the_batch(report, write_run):
    def fixed(table, row):
        return {**row, "value": 0.75} if row.get("measure") == "loss" else row

    made = report([write_run("a", rows=fixed)])
    assert rows_of(made, "runs")[0]["loss"].value == 0.75
    assert all(row["loss"].value == 0.75 for one in made.tables if one.key == "arms" for row in rows_of(made, "arms"))


def test_the_warning_of_raw_hessian_numbers_stands_once(demo_runs):
    report = sharpness(demo_runs)
    warning = "compare only reparametrization-invariant measures, at matched train loss"
    beside = [*(table.note for table in report.tables), *(one.caption for one in report.figures)]
    assert sum(warning in words for words in (*report.notes, *beside)) == 1


def test_only_the_directional_edge_ratio_has_a_threshold_and_it_is_one(demo_runs):
    thresholds = {figure.key: figure.thresholds for figure in sharpness(demo_runs).figures}
    assert [key for key, lines in thresholds.items() if lines] == ["directional_edge_ratio"]
    (line,) = thresholds["directional_edge_ratio"]
    assert line.value == 1
    assert "dᵀHd" in line.label


def test_no_verdict_between_arms_is_given(demo_runs):
    assert any("`lossscope compare A B` does" in note for note in sharpness(demo_runs).notes)


def test_a_run_without_curvature_is_a_gap_and_says_how_to_get_it(write_run):
    report = sharpness([write_run("bare", curvature=False)])
    row = rows_of(report, "runs")[0]
    assert row["step"] is None
    assert row["lambda_max"] == Quantity(None)
    assert rows_of(report, "cost")[0]["products"] is None
    (missing,) = report.missing
    assert "bare" in missing.what
    assert "objective=" in missing.how
    assert {figure.key: figure.absent for figure in report.figures}["trace"] == ("ars2-base",)


@pytest.mark.parametrize("report", [sharpness, flatness, overview])
@pytest.mark.parametrize("status", ["finished", "crashed", "running"])
def test_evaluations_that_could_not_be_measured_are_counted_with_the_first_reason(report, status, write_run):
    gaps = [
        {"step": 16, "why": "the weights are not finite"},
        {"step": 16, "why": "the loss is not finite"},
        {"step": 32, "why": "the step is zero"},
    ]
    run = write_run("a", curvature_gaps=gaps)
    run.status = status
    missing = report([run]).missing[0]
    assert missing.what == "Part of the curvature of a at 2 evaluations (step 16, 32)"
    assert missing.how == "First reason: the weights are not finite"


def test_a_single_gap_is_one_evaluation_and_its_only_reason(write_run):
    (missing,) = sharpness([write_run("a", curvature_gaps=[{"step": 16, "why": "the weights are not finite"}])]).missing
    assert missing.what.endswith("at 1 evaluation (step 16)")
    assert missing.how == "the weights are not finite"


def test_gaps_of_other_instruments_are_told_apart(write_run):
    gaps = [
        {"step": 8, "instrument": "curvature", "why": "the loss is inf"},
        {"step": 8, "instrument": "layers", "why": "the loss is inf"},
        {"step": 16, "instrument": "layers", "why": "the loss is nan"},
    ]
    curvature, layers = sharpness([write_run("a", curvature_gaps=gaps)]).missing
    assert curvature.what == "Part of the curvature of a at 1 evaluation (step 8)"
    assert layers.what == "Layer-wise remainders of a at 2 samples (step 8, 16)"
    assert layers.how == "First reason: the loss is inf"


def test_a_run_whose_every_evaluation_failed_is_not_told_to_pass_an_objective(write_run):
    gaps = [{"step": 0, "why": "the weights are not finite"}]
    (missing,) = sharpness([write_run("a", curvature=False, curvature_gaps=gaps)]).missing
    assert missing.what == "Curvature of a at 1 evaluation (step 0)"
    assert missing.how == "the weights are not finite"


@pytest.mark.parametrize("report", [sharpness, flatness, overview])
def test_runs_of_the_same_seeds_are_one_seed_and_said_so(report, write_run):
    runs = [write_run(name, "sgd", seed) for name, seed in (("a", 0), ("b", 0), ("c", 0), ("d", 1))]
    runs += [write_run(name, "unknown", seeds={}) for name in ("e", "f")]  # who does not say is taken at his word
    for table in report(runs).tables:
        keys = [column.key for column in table.columns]
        if "seeds" in keys:
            assert [row[keys.index("seeds")] for row in table.rows] == [2, 2]
        elif table.rows[0][0] == "seeds":
            assert table.rows[0][2:] == (2, 2)
        else:
            continue
        assert "sgd: 4 runs of only 2 seeds" in table.note
        assert "unknown:" not in table.note
        return
    pytest.fail("no table counts seeds")


def test_the_critical_learning_rate_is_shown_with_its_bracket_and_is_called_no_edge(write_run):

    def with_step(table, row):
        if row.get("measure") != "directional_edge_ratio":
            return row
        return {**row, "measure": "critical_step", "value": 3.0, "stderr": None, "low": 2.9, "high": 3.2}

    shown = {column.key for column in spectrum_tables._CRITICAL}
    assert shown == {*GROUPS["critical"].names, "lambda_dir"}
    report = sharpness([write_run("a", rows=with_step)])
    (row,) = rows_of(report, "critical")
    assert row["critical_step"] == Quantity(3.0, error=pytest.approx(0.2))
    assert set(row) == {"run", "step", "critical_step"}  # columns without a number are left out
    (table,) = (one for one in report.tables if one.key == "critical")
    assert "Below 1 the step raised the loss" in table.note
    assert "no stability threshold" in table.note
    text = " ".join([table.title, table.note, *(f"{one.title} {one.meaning}" for one in table.columns)]).lower()
    assert "edge" not in text
    assert not any("critical" in finding.claim for finding in report.findings)
