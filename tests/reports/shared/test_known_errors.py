"""Digits of numbers with a known error: the last one shown is at most one place below the first digit of the error."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import flatness, overview, sharpness
from lossscope.reports.content import Quantity, Report
from lossscope.reports.shared.number_format import quantity_text
from lossscope.reports.shared.quantities import at_last_evaluation

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?")
POWER = re.compile(r"\((.*)\)(e[+-]\d+)")
SAMPLING = {"lambda_max_cross_fitted": (45.0, 12.0), "lambda_max_population": (48.0, 8.0)}
FACTOR = 100  # ends of an interval that are further apart have two digits each, whatever its width


def places(words: str) -> list[tuple[float, int]]:
    """Return each number of a cell with the power of ten of its last digit; zeros that end an integer are no digits."""
    if (power := POWER.match(words)) is not None:
        exponent = power[2]
        words = " ".join(f"{one}{exponent}" for one in NUMBER.findall(power[1]))
    return [(float(one), _last(one)) for one in NUMBER.findall(words.split(" (")[0])]


def _last(number: str) -> int:
    mantissa, _, exponent = number.partition("e")
    if "." in mantissa:
        return int(exponent or 0) - len(mantissa.split(".")[1])
    return int(exponent or 0) + len(mantissa) - max(1, len(mantissa.rstrip("0")))


def significant(value: float, place: int) -> int:
    """Return the number of significant digits of a number whose last has a place."""
    return 1 if value == 0 else math.floor(math.log10(abs(value)) + 1e-9) - place + 1


def known(quantity: Quantity) -> float:
    """Return the largest known error of a quantity."""
    low, high = quantity.low, quantity.high
    width = 0.0 if low is None or high is None or math.isinf(low) or math.isinf(high) else (high - low) / 2
    return quantity.error or max(quantity.known_error or 0.0, width)  # an interval beside an error is the same error


def assert_digits(words: str, error: float) -> None:
    for value, place in places(words):
        if error and significant(value, place) > 2:
            assert place >= math.floor(math.log10(error)) - 1, (words, error)


sizes = st.floats(-8, 8).map(lambda power: 10.0**power)


@given(sizes, st.floats(-6, 2), st.one_of(st.none(), sizes))
def test_a_number_ends_at_its_error(size: float, share: float, other: float | None) -> None:
    error = size * 10.0**share
    assert_digits(quantity_text(Quantity(size, error=error)), error)
    assert_digits(quantity_text(Quantity(size, known_error=error)), error)
    if other is not None:
        quantity = Quantity(size, low=size - error, high=size + 0.7 * error, known_error=other)
        assert_digits(quantity_text(quantity), known(quantity))


def sampled(run: Run, step: int = 40) -> Run:
    """Add the sampling error of λ_max at the last evaluation, and its edge ratio, to a run."""
    store = RunStore.extend(run.path, {})
    shared = {"mode": "eval", "loss_kind": "mean", "gauge": "raw", "dtype": "float32", "engine": "lossscope"}
    shared |= {"step": step, "data_hash": run.manifest["data_hash"]}
    for measure, (value, stderr) in SAMPLING.items():
        ends = {"low": value - 2 * stderr, "high": value + 2 * stderr}
        store.append("probes", {**shared, "measure": measure, "value": value, "stderr": stderr, **ends})
    ratio = {"value": 0.5123456, "low": 0.5123451, "high": 0.5123461}
    store.append("probes", {**shared, "measure": "sharpness_edge_ratio", **ratio})
    store.leave()
    return Run.open(run.path)


def cells(report: Report) -> Iterator[tuple[str, str, Quantity]]:
    for table in report.tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                if isinstance(cell, Quantity) and cell.value is not None:
                    yield table.key, column.key, cell


def errors_of(run: Run) -> dict[float, float]:
    """Return the largest error of each recorded estimate of a run, by its value, from the rows of `probes` alone."""
    found: dict[float, float] = {}
    largest = max(stderr for _, stderr in SAMPLING.values())
    for row in run.estimates.to_dict("records"):
        ends = [abs(row["value"] - row[end]) for end in ("low", "high") if row[end] is not None]
        errors = [row["stderr"] or 0.0] if row["stderr"] == row["stderr"] and row["stderr"] else ends
        error = max((one for one in errors if one == one), default=0.0)
        if row["step"] == 40 and row["measure"] == "lambda_max":
            error = largest
        if row["step"] == 40 and row["measure"] == "sharpness_edge_ratio":
            error = largest / 50.0 * row["value"]
        found[row["value"]] = max(error, found.get(row["value"], 0.0))
    return found


@pytest.mark.parametrize("report", [sharpness, flatness, overview])
def test_no_cell_of_a_report_shows_more_than_the_errors_in_the_run_allow(report, write_run) -> None:
    run = sampled(write_run("a"))
    errors, checked = errors_of(run), 0
    for key, column, cell in cells(report([run])):
        words = quantity_text(cell)
        assert_digits(words, known(cell))
        if cell.value in errors:
            checked += 1
            value, place = places(words)[0]
            error = errors[cell.value]
            if error and significant(value, place) > 2:
                assert place >= math.floor(math.log10(error)) - 1, (key, column, words, error)
    assert checked > 5


@pytest.mark.parametrize("report", [sharpness, flatness, overview])
def test_a_median_over_seeds_that_agree_ends_at_the_error_of_its_measurement(report, write_run) -> None:
    same = [sampled(write_run(f"s{seed}", seed=0, seeds={"init": seed})) for seed in (0, 1)]
    words = [quantity_text(cell) for _, _, cell in cells(report(same)) if cell.value == 50.0]
    assert all(one in ("50", "50 ± 12") for one in words)
    assert words


def test_the_error_of_the_largest_eigenvalue_is_that_of_sampling_where_it_is_larger(write_run) -> None:
    run = write_run("a")
    assert at_last_evaluation(run, "lambda_max").error == 0.25
    run = sampled(run)
    assert at_last_evaluation(run, "lambda_max").error == 12.0
    assert at_last_evaluation(run, "sharpness_edge_ratio").error == pytest.approx(12.0 / 50.0 * 0.5123456)
    assert at_last_evaluation(run, "lambda_min").error == 0.25
