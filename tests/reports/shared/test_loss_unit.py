"""The unit of the loss in tables, figures and text."""

from __future__ import annotations

import itertools
import json

import pytest

from lossscope.landscape.reprobe.result import Probed
from lossscope.reports import dynamics, flatness, overview, render, sharpness
from lossscope.reports.listings.probe_tables import probe_tables
from lossscope.reports.listings.run_list import Unreadable, run_list
from lossscope.reports.shared.loss_unit import loss_unit

REPORTS = (sharpness, flatness, dynamics, overview)


@pytest.fixture
def run_in(dynamic_run, write_run):
    """Return runs with every table whose losses have one unit; by default nats."""
    count = itertools.count()

    def runs(**facts):
        place = next(count)
        return [dynamic_run(f"dynamic-{place}", **facts), write_run(f"sharp-{place}", **facts)]

    return runs


@pytest.mark.parametrize("report", REPORTS)
def test_a_loss_of_unknown_unit_is_nowhere_in_nats(report, run_in):
    unknown, known = report(run_in(loss_unit=None)), report(run_in())
    for format in ("text", "json"):
        assert "nats" not in render(unknown, format), format
        assert "nats" in render(known, format), format
    assert report is not overview or "nats" not in render(unknown, "html")


@pytest.mark.parametrize("report", REPORTS)
def test_another_unit_is_shown_in_every_table_and_axis_that_was_in_nats(report, run_in):
    nats, bits = (json.loads(render(report(run_in(**facts)), "json")) for facts in ({}, {"loss_unit": "bits"}))
    assert "nats" not in json.dumps(bits)
    for key, table in nats["tables"].items():
        units = [column["unit"].replace("nats", "bits") for column in table["columns"]]
        assert [column["unit"] for column in bits["tables"][key]["columns"]] == units
    for key, figure in nats["figures"].items():
        for axis in ("x", "y"):
            assert bits["figures"][key][axis]["unit"] == figure[axis]["unit"].replace("nats", "bits")


def test_runs_of_different_units_share_the_symbolic_unit(run_in, write_run):
    mixed = [write_run("c"), write_run("d", loss_unit="bits")]
    assert loss_unit(mixed) == "loss"
    units = {column.key: column.unit for table in sharpness(mixed).tables for column in table.columns}
    assert units["lambda_max"] == units["trace"] == "loss"
    assert {loss_unit(run_in()), loss_unit(mixed[1:])} == {"nats", "bits"}


def test_the_list_of_runs_takes_the_unit_of_the_readable_ones(write_run, tmp_path):
    def unit(*runs):
        return next(column.unit for column in run_list(runs, tmp_path).columns if column.key == "loss")

    broken = Unreadable(tmp_path / "x", "garbled")
    assert unit(write_run("a"), broken) == "nats"
    assert unit(write_run("b", loss_unit=None), broken) == ""


@pytest.mark.parametrize(("facts", "units"), [({}, ["nats", "1"]), ({"loss_unit": None}, ["", "1"])])
def test_probed_values_are_in_the_unit_of_the_loss(facts, units, write_run):
    run = write_run("a", **facts)
    row = {"step": 1, "tensor": None, "value": 1.0, "stderr": None, "low": None, "high": None, "residual": 0.1}
    row |= {"converged": True, "engine": "lossscope", "products": 3, "seconds": 1.0, "gradients": None}
    rows = tuple({**row, "measure": measure} for measure in ("trace", "negative_mass"))
    table = probe_tables(Probed(run.path, (1,), rows, (), (), (), 1.0))[0]
    assert [cells[4] for cells in table.rows] == units
