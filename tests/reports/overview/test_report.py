"""The overview."""

from __future__ import annotations

import pytest

from lossscope.reports import overview, render
from lossscope.reports.content import Quantity

_TRAIN_LOSS = "train loss, all training data"


def rows_of(report):
    return {row[0]: row[2:] for table in report.tables for row in table.rows}


def test_the_table_has_each_arm_as_a_column_with_medians_and_ranges(demo_runs):
    report = overview(demo_runs)
    (arms,) = [table for table in report.tables if table.columns[0].key == "measure"]
    assert [column.title for column in arms.columns] == ["measure", "unit", "ars2-base", "ars2-sync"]
    rows = rows_of(report)
    assert rows["seeds"] == (2, 2)
    assert rows["λ_max"][0] == Quantity(50.5, low=50.0, high=51.0, known_error=0.25)
    assert rows["test accuracy"][0].value == pytest.approx(90.5)
    assert rows["entropy before Newton-Schulz"][0].value == pytest.approx(0.8)
    assert rows["Fisher energy of matrices, E / √numel"][0].value == 0.25
    assert rows["trace: largest standard error"] == (1.5, 1.5)


def test_losses_on_all_training_data_and_on_test_data_are_shown_where_one_run_has_them(demo_runs, write_run):
    assert not [measure for measure in rows_of(overview(demo_runs)) if measure in ("test loss", _TRAIN_LOSS)]
    names = {"lambda_min": "train_loss", "log_fisher_rao": "test_loss"}

    def renamed(table, row):
        return {**row, "measure": names.get(row["measure"], row["measure"])} if table == "probes" else row

    known = write_run("known", "sgd", rows=renamed)
    rows = rows_of(overview([known, write_run("unknown", "adam")]))
    assert [one.value for one in rows["test loss"]] == [0.7, None]
    assert [one.value for one in rows[_TRAIN_LOSS]] == [-2.0, None]


def test_an_arm_without_shear_has_a_gap_in_table_and_legend_and_not_a_zero(demo_runs):
    report = overview(demo_runs)
    base, sync = rows_of(report)["shear angle"]
    assert base == Quantity(None)
    assert sync.value == pytest.approx(30)
    figure = next(one for one in report.figures if one.key == "shear_angle")
    assert figure.absent == ("ars2-base",)
    assert [(curve.name, curve.hue) for curve in figure.curves] == [("ars2-sync", 1)]
    assert figure.curves[0].median[-1] == pytest.approx(30)


def test_it_has_every_figure_of_the_demo(demo_runs):
    assert {figure.key for figure in overview(demo_runs).figures} >= {
        "loss",
        "lambda_max",
        "directional_edge_ratio",
        "trace",
        "entropy",
        "shear_angle",
        "energy_rms",
    }


def test_many_arms_are_spread_over_several_tables(write_run):
    runs = [write_run(f"r{number}", f"arm-{number}") for number in range(5)]
    found = [table for table in overview(runs).tables if table.key.startswith("summary")]
    assert [len(table.columns) - 2 for table in found] == [4, 1]


@pytest.mark.parametrize("status", ["failed", None])
def test_the_first_note_says_where_an_unfinished_run_ends(write_run, status):
    run = write_run("broken", steps=7, status=status)
    first = overview([write_run("good"), run]).notes[0]
    assert first.startswith(f"broken: {run.status}.")
    assert run.ends in first


def test_a_run_of_no_steps_is_reported(write_run):
    report = overview([write_run("empty", steps=0, curvature=False)])
    assert "empty: no step was recorded." in report.notes
    assert rows_of(report)["λ_max"] == (Quantity(None),)


def without(measure):
    """Return a row transform that drops a measure."""
    return lambda table, row: None if row.get("measure") == measure else row


@pytest.mark.parametrize("format", ["text", "html"])
def test_a_number_that_some_seeds_lack_says_how_many_and_what_that_means(write_run, format):
    runs = [write_run("a"), write_run("b", seed=1), write_run("c", seed=2, rows=without("trace"))]
    (row,) = [
        row
        for table in overview(runs).tables
        if table.columns[0].key == "measure"
        for row in table.rows
        if row[0] == "trace"
    ]
    assert row[2] == Quantity(202.0, low=200.0, high=204.0, missing=1, known_error=1.5)
    shown = render(overview(runs), format)
    assert "202 [200, 204] (1 missing)" in shown.replace("<wbr>", "")
    assert "n seeds have no value; the statistics are over the remaining seeds" in " ".join(shown.split())


def test_a_number_that_every_seed_lacks_is_a_plain_gap_on_the_page(write_run):
    runs = [write_run("a", rows=without("trace")), write_run("b", seed=1, rows=without("trace"))]
    assert '<td class="words">trace</td><td class="words">nats</td><td>–</td>' in render(overview(runs), "html")


def test_the_fisher_energy_is_the_mean_over_matrices_only(write_run):
    def rows(table, row):
        return {**row, "energy_rms": 0.75} if table == "tensors" and row["track"] == "vector" else row

    assert rows_of(overview([write_run("a", rows=rows)]))["Fisher energy of matrices, E / √numel"][0].value == 0.25
