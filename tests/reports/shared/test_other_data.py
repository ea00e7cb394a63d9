"""Rows of another function are in a table of their own, in the report that has the measure."""

from __future__ import annotations

from lossscope.reports import dynamics, flatness, sharpness

OTHER = {"step": 40, "measure": "lambda_max", "value": 123.0, "data_hash": "other data", "mode": "eval"}


def others(report):
    return [row for table in report.tables if table.key == "other_data" for row in table.rows]


def with_row(row):
    """Return a row transform that writes one more row of probes after the last."""
    seen = []

    def rows(table, one):
        if table == "probes" and not seen:
            seen.append(one)
            return {**one, **row}
        return one

    return rows


def test_a_row_of_other_data_is_listed_with_its_data_and_in_no_curve(write_run):
    run = write_run("a", rows=with_row(OTHER))
    (row,) = others(sharpness([run]))
    assert (row[0], row[1], row[2], row[4].value, row[5]) == ("a", 40, "lambda_max", 123.0, "other da")
    curve = next(one for one in sharpness([run]).figures if one.key == "lambda_max").curves[0]
    assert 123.0 not in curve.median


def test_it_is_listed_where_its_measure_is(write_run):
    run = write_run("a", rows=with_row({**OTHER, "measure": "trust_ratio"}))
    assert others(sharpness([run])) == others(flatness([run])) == []
    run = write_run("b", rows=with_row({**OTHER, "measure": "adaptive_trace"}))
    assert others(sharpness([run])) == others(dynamics([run])) == []
    assert len(others(flatness([run]))) == 1


def test_runs_on_their_own_data_have_no_such_table(demo_runs):
    assert others(sharpness(demo_runs)) == []
