"""The sharpness report."""

from __future__ import annotations

from lossscope.reports import sharpness
from lossscope.reports.content import Quantity


def rows_of(report, key):
    table = next(table for table in report.tables if table.key == key)
    return [dict(zip((column.key for column in table.columns), row, strict=True)) for row in table.rows]


def test_each_run_has_its_last_visit_with_errors(demo_runs):
    first = rows_of(sharpness(demo_runs), "runs")[0]
    assert (first["run"], first["step"]) == ("ars2-base-s0", 40)
    assert first["lambda_max"] == Quantity(50.0, error=0.25)
    assert first["trace"] == Quantity(200.0, error=1.5, low=197.0, high=203.0)
    assert first["edge_ratio"].value == 0.5
    assert first["loss"] == 0.05


def test_each_arm_has_the_median_and_range_of_its_seeds_and_the_error_apart(demo_runs):
    base = rows_of(sharpness(demo_runs), "arms")[0]
    assert base["seeds"] == 2
    assert base["lambda_max"] == Quantity(50.5, low=50.0, high=51.0)
    assert base["trace_error"] == 1.5


def test_products_of_one_call_are_counted_once(demo_runs):
    cost = rows_of(sharpness(demo_runs), "cost")[0]
    assert cost["products"] == 8 * (20 + 16) + 7  # spectrum, adaptive trace; one for each step with a direction
    assert cost["visits"] == 8
    assert cost["overhead"] == 25


def test_the_warning_stands_beside_every_raw_hessian_number(demo_runs):
    report = sharpness(demo_runs)
    warning = "only reparametrisation-invariant measures at matched train loss decide"
    beside = {table.key: table.note for table in report.tables} | {one.key: one.caption for one in report.figures}
    assert all(warning in beside[key] for key in ("runs", "arms", "lambda_max", "trace"))


def test_only_r_dir_has_a_threshold_and_it_is_one(demo_runs):
    thresholds = {figure.key: figure.thresholds for figure in sharpness(demo_runs).figures}
    assert [key for key, lines in thresholds.items() if lines] == ["edge_ratio"]
    (line,) = thresholds["edge_ratio"]
    assert line.value == 1
    assert "dᵀHd" in line.label


def test_no_verdict_between_arms_is_given(demo_runs):
    assert any("at least 6 paired seeds" in note for note in sharpness(demo_runs).notes)


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


def test_a_visit_that_could_not_be_measured_is_named_with_its_reason(write_run):
    run = write_run("a", curvature_gaps=[{"step": 16, "why": "the weights are not finite"}])
    (missing,) = sharpness([run]).missing
    assert "step 16" in missing.what
    assert missing.how == "the weights are not finite"
