"""Results of `lossscope probe` in the sharpness report, in every format."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import render, sharpness
from lossscope.reports.content import Quantity
from lossscope.reports.figure_content import Spectra
from lossscope.reports.render.drawing import draw_figure, draw_spectrum
from lossscope.reports.shared.findings import all_bounds_met
from lossscope.reports.sharpness.density_figure import density_figure

SHARED = {"mode": "eval", "loss_kind": "mean", "gauge": "raw", "dtype": "float32", "engine": "lossscope", "step": 40}


def estimated(measure, value, stderr, tensor=None, **more):
    ends = {"low": value - 2 * stderr, "high": value + 2 * stderr}
    cost = {"products": 60, "seconds": 0.5, "gradients": 20.0, "converged": True}
    return {**SHARED, "measure": measure, "tensor": tensor, "value": value, "stderr": stderr, **ends, **cost, **more}


def bounded(measure, value, bound, tensor=None, **more):
    row = estimated(measure, value, bound, tensor, **more)
    return {**row, "stderr": None, "low": value - bound, "high": value + bound, "residual": 0.01}


MODULES = [
    estimated("trace", 6.0, 0.3, "0"),
    estimated("trace", 2.0, 0.4, "2"),
    estimated("trace_share", 0.75, 0.05, "0"),
    estimated("trace_share", 0.25, 0.05, "2"),
    bounded("lambda_max", 5.0, 0.1, "0"),
    bounded("lambda_max", 1.0, 0.1, "2"),
    estimated("frobenius_share", 0.5, 0.02, "0"),
    estimated("frobenius_share", 0.1, 0.01, "2"),
    estimated("cross_block_share", 0.4, 0.02),
]
SAMPLING = [
    bounded("lambda_max_in_sample", 50.0, 0.5),
    estimated("lambda_max_cross_fitted", 44.0, 3.0),
    estimated("lambda_max_population", 48.0, 3.0),
]
OPINIONS = [
    {**bounded("lambda_max", 49.0, 0.8), "engine": "pyhessian", "products": 90},
    {**estimated("trace", 210.0, 5.0), "engine": "pyhessian", "products": 90},
]
EDGES = [
    bounded("preconditioned_sharpness", 700.0, 7.0),
    bounded("preconditioned_edge_ratio", 0.5, 0.005),
    estimated("batch_sharpness", 7.0, 0.5, data_hash="minibatches"),
    estimated("batch_sharpness_ratio_of_means", 8.0, 0.5, data_hash="minibatches"),
]
SPECTRUM = [
    bounded("lambda_2", 30.0, 0.2),
    estimated("effective_rank", 25.0, 2.0, converged=False),
    estimated("negative_mass", 0.05, 0.01),
]
DENSITY = [
    {
        "step": 40,
        "probe": probe,
        "nodes": [-1.0, 0.0, 0.5, 50.0],
        "weights": weights,
        "settled": [0.0, 0.0, 0.0, 1.0],
        "size": 99,
        "mode": "eval",
        "loss_kind": "mean",
    }
    for probe, weights in enumerate(([0.1, 0.7, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1]))
]


def extended(run: Run, *rows, densities=()) -> Run:
    """Return the run with the rows that a probe would add."""
    store = RunStore.extend(run.path, {})
    for row in rows:
        store.append("probes", row)
    for row in densities:
        store.append("densities", row)
    store.leave()
    return Run.open(run.path)


def rows_of(report, key):
    table = next(table for table in report.tables if table.key == key)
    return [dict(zip((column.key for column in table.columns), row, strict=True)) for row in table.rows]


@pytest.fixture
def probed(write_run):
    rows = [*MODULES, *SAMPLING, *OPINIONS, *EDGES, *SPECTRUM]
    return extended(write_run("a"), *rows, densities=DENSITY)


def test_a_run_without_these_measures_has_no_table_and_no_figure_for_them(demo_runs):
    report = sharpness(demo_runs)
    assert [table.key for table in report.tables] == [
        "diagnosis",
        "runs",
        "trajectory",
        "evaluations",
        "arms",
        "norms",
        "cost",
        "overhead",
        "false_alarms",
    ]
    assert [figure.key for figure in report.figures] == ["loss", "lambda_max", "directional_edge_ratio", "trace"]


def test_blocks_add_up_to_the_whole_with_what_lies_between_them(probed):
    rows = rows_of(sharpness([probed]), "modules")
    assert [row["block"] for row in rows] == ["0", "2", "between blocks", "the whole"]
    assert rows[0]["trace"] == Quantity(6.0, error=0.3)
    assert rows[0]["trace_share"] == Quantity(75.0, error=5.0)
    assert rows[0]["lambda_max"].value == 5.0
    assert rows[0]["lambda_max"].error == pytest.approx(0.1)
    between, whole = rows[2:]
    assert between["frobenius_share"] == Quantity(40.0, error=2.0)
    assert between["trace"] is None
    assert whole["trace"] == Quantity(8.0, error=0.5)  # errors of independent blocks add in quadrature
    assert whole["frobenius_share"] == pytest.approx(100.0)
    assert whole["lambda_max"].value == 50.0


def test_a_block_that_lacks_its_trace_makes_the_sum_a_gap(write_run):
    run = extended(write_run("a"), *[row for row in MODULES if (row["measure"], row["tensor"]) != ("trace", "2")])
    rows = rows_of(sharpness([run]), "modules")
    assert rows[1]["trace"] == Quantity(None)
    assert rows[-1]["trace"] == Quantity(None)


def test_the_error_over_data_is_shown_in_sample_and_cross_fitted(probed):
    (row,) = rows_of(sharpness([probed]), "sampling_error")
    assert row["lambda_max_in_sample"] == Quantity(50.0, error=0.5)
    assert row["lambda_max_cross_fitted"] == Quantity(44.0, error=3.0, low=38.0, high=50.0)
    assert row["lambda_max_population"].value == 48.0


def test_a_second_opinion_stands_beside_ours_and_never_in_its_place(probed):
    report = sharpness([probed])
    top, trace = rows_of(report, "opinions")
    assert (top["measure"], top["engine"], top["our_products"], top["their_products"]) == (
        "lambda_max",
        "pyhessian",
        20,
        90,
    )
    assert top["ours"] == Quantity(50.0, error=0.25)
    assert top["theirs"].value == 49.0
    assert top["apart"] == pytest.approx(-2.0)
    assert trace["apart"] == pytest.approx(5.0)
    assert rows_of(report, "runs")[0]["lambda_max"].value == 50.0
    (note,) = [table.note for table in report.tables if table.key == "opinions"]
    assert "the density shown here is lossscope's" in note


def test_a_second_opinion_on_other_data_has_no_number_of_ours_beside_it(write_run):
    (run,) = [extended(write_run("a"), {**OPINIONS[0], "data_hash": "elsewhere"})]
    (row,) = rows_of(sharpness([run]), "opinions")
    assert row["ours"] == Quantity(None)
    assert row["apart"] is None


def test_each_threshold_has_its_own_ratio_and_only_those_there_are_shown(probed):
    (row,) = rows_of(sharpness([probed]), "edges")
    assert row["preconditioned_edge_ratio"].value == 0.5
    assert row["batch_sharpness"] == Quantity(7.0, error=0.5, low=6.0, high=8.0)
    assert "sharpness_edge_ratio" not in row
    figures = {figure.key: figure for figure in sharpness([probed]).figures}
    (level,) = [line for line in figures["preconditioned_sharpness"].curves if line.dashed]
    assert level.median[-1] == pytest.approx(row["preconditioned_sharpness"].value / 0.5)
    assert not [line for line in figures["lambda_max"].curves if line.dashed]


def test_what_follows_from_the_whole_spectrum_has_its_intervals(probed):
    (row,) = rows_of(sharpness([probed]), "spectrum")
    assert row["effective_rank"] == Quantity(25.0, error=2.0, low=21.0, high=29.0)
    assert set(row) == {"run", "step", "effective_rank", "negative_mass"}
    (row,) = rows_of(sharpness([probed]), "eigenvalues")
    assert row["lambda_2"].value == 30.0
    assert set(row) == {"run", "step", "lambda_2"}


def test_bounds_that_were_not_met_are_named_with_how_often(probed, demo_runs):
    found = all_bounds_met([probed])
    assert found.outcome is False
    assert found.numbers == "effective_rank met 0 of 1"
    assert all_bounds_met(demo_runs).outcome is True
    assert all_bounds_met([]).outcome is None


def test_the_cost_is_told_in_gradients_too_and_counts_what_a_probe_spent(write_run):
    run = write_run("a")
    before = rows_of(sharpness([run]), "cost")[0]
    assert before["gradients"] is None
    after = rows_of(sharpness([extended(run, *MODULES)]), "cost")[0]
    assert after["products"] == before["products"] + 60  # one call, however many rows
    assert after["gradients"] == 20.0
    assert after["evaluations"] == before["evaluations"]


def test_a_density_alone_is_counted_and_one_with_other_rows_not_twice(write_run):
    run = write_run("a")
    before = rows_of(sharpness([run]), "cost")[0]["products"]
    cost = {"products": 60, "seconds": 0.5, "gradients": 20.0}
    density = [{**row, **cost} for row in DENSITY]
    alone = extended(run, densities=density)
    assert rows_of(sharpness([alone]), "cost")[0]["products"] == before + 60
    together = extended(alone, bounded("lambda_2", 30.0, 0.2))
    assert rows_of(sharpness([together]), "cost")[0]["products"] == before + 60


def test_the_density_is_drawn_on_a_signed_axis_with_its_lone_eigenvalues_marked(probed):
    figure = density_figure([probed])
    assert isinstance(figure, Spectra)
    (spectrum,) = figure.spectra
    assert figure.x.scale == "symlog"
    assert figure.x.linear_to == pytest.approx(0.5)
    assert spectrum.single == (50.0,)
    assert all(low <= high for low, high in zip(spectrum.low, spectrum.high, strict=True))
    assert "99 eigenvalues from -1.00 to 50.0 nats at step 40; 1 isolated" in figure.summary[0]
    drawn = draw_figure(figure)
    (ax,) = drawn.axes
    _, line, ticks = draw_spectrum(ax, spectrum)
    assert ax.get_xscale() == "symlog"
    assert [segment[0][0] for segment in ticks.get_segments()] == [50.0]
    assert np.nanmax(line.get_ydata()) > 10
    assert [label.get_text() for label in ax.get_xticklabels()] == ["\N{MINUS SIGN}1", "0", "1", "10", "100"]


def test_an_arm_without_a_density_is_named(probed, write_run):
    figure = density_figure([probed, write_run("b", "sgd")])
    assert figure.absent == ("sgd",)
    assert len(figure.spectra) == 1


@pytest.mark.parametrize("format", ["text", "json", "html"])
def test_text_json_and_page_hold_the_same_tables(probed, format):
    report = sharpness([probed])
    text = render(report, format)
    if format == "json":
        found = json.loads(text)
        assert {"modules", "sampling_error", "opinions", "edges", "spectrum"} <= set(found["tables"])
        assert found["figures"]["density"]["kind"] == "spectra"
        assert found["figures"]["density"]["spectra"][0]["single"] == [50.0]
        return
    for table in report.tables:
        assert table.title in html.unescape(text)
    for words in ("between blocks", "cross-fitted", "pyhessian", "Spectral density of the Hessian", "gradients"):
        assert words in text
    assert render(report, format) == text
