"""The flatness report."""

from __future__ import annotations

import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import flatness
from lossscope.reports.content import Column, Quantity
from lossscope.reports.figure_content import Cloud
from lossscope.reports.shared.cost_tables import cost_table
from lossscope.reports.shared.measure_tables import measure_table


def extended(run: Run, *rows: dict[str, object]) -> Run:
    """Append rows of `probes` to a run."""
    store = RunStore.extend(run.path, {})
    for row in rows:
        store.append("probes", row)
    store.leave()
    return Run.open(run.path)


def test_each_run_has_its_invariants_the_loss_they_were_taken_at_and_its_norm(demo_runs):
    table = flatness(demo_runs).tables[0]
    row = dict(zip((column.key for column in table.columns), table.rows[1], strict=True))
    assert row["adaptive_trace"] == Quantity(4.0, error=0.125, low=3.75, high=4.25)
    assert row["log_fisher_rao"].value == 0.7
    assert row["loss"].value == pytest.approx(0.06)
    assert row["weight_norm"].value == 6.0


def test_what_no_run_has_of_the_panel_is_named_with_the_command_that_measures_it(demo_runs):
    missing = flatness(demo_runs).missing
    assert [one.what.split()[0] for one in missing] == ["Adaptive", "λ_max", "Basin", "Guard:"]
    assert [one.how.rsplit(" ", 1)[1] for one in missing] == ["adaptive", "balanced", "basin", "guard"]
    assert not {"panel", "guard"} & {table.key for table in flatness(demo_runs).tables}


def test_the_panel_and_the_guard_are_shown_where_they_were_measured(demo_runs, write_run):
    shared = {"mode": "eval", "loss_kind": "mean", "engine": "lossscope", "converged": True}
    numbers = {"adaptive_lambda_max": 2.0, "balanced_trace": 3.0, "sigma_star": 0.125, "guard_adaptive_trace": 1.0}
    rows = [
        {**shared, "step": 40, "measure": name, "value": one, "low": one - 0.5, "high": one + 0.5}
        for name, one in numbers.items()
    ]
    report = flatness([extended(write_run("a"), *rows)])
    tables = {table.key: table for table in report.tables}
    panel = dict(zip((column.key for column in tables["panel"].columns), tables["panel"].rows[0], strict=True))
    assert (panel["adaptive_lambda_max"].value, panel["balanced_trace"].value, panel["sigma_star"].value) == (
        2,
        3,
        0.125,
    )
    assert tables["guard"].rows[0][-1].value == 1.0
    assert "adaptive_lambda_max" in [column.key for column in tables["arms"].columns]
    assert not report.missing


def test_no_comparison_is_made_and_the_reason_is_given(demo_runs):
    assert any("not at matched train loss" in note for note in flatness(demo_runs).notes)


def test_the_adaptive_trace_is_drawn_over_the_loss_and_not_over_steps(demo_runs):
    figure = flatness(demo_runs).figures[0]
    assert isinstance(figure, Cloud)
    assert figure.x.label == "train loss"
    assert len(figure.points[0].x) == 16  # eight evaluations of two seeds
    assert figure.points[0].y[-1] == 4.0
    assert figure.points[0].error[-1] == 0.25


def test_many_runs_are_told_by_arm_with_their_number(write_run):
    runs = [write_run(f"r{seed}", seed=seed) for seed in range(13)]
    tables = {table.key: table for table in flatness(runs).tables}
    assert "runs" not in tables
    assert [row[:2] for row in tables["arms"].rows] == [("ars2-base", 13)]
    assert [row[:2] for row in measure_table(runs, "some", "Some", [Column("trace", "trace")], "")[0].rows] == [
        ("ars2-base", 13)
    ]
    assert cost_table(runs).rows[0][:2] == ("ars2-base", 13)
    assert len(cost_table(runs[:12]).rows) == 12
