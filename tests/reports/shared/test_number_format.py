"""Number formatting."""

from __future__ import annotations

import math

import pytest

from lossscope.landscape.storage.safe_text import printable
from lossscope.reports.content import Column, Quantity
from lossscope.reports.shared.number_format import cell_text, header, percent, plain, quantity_text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
        (0.0, "0"),
        (1234.567, "1235"),
        (0.25, "0.2500"),
        (9.99999, "10.00"),
        (0.0000123, "1.230e-05"),
        (-12345678.0, "-1.235e+07"),
    ],
)
def test_a_plain_number_has_four_digits_and_a_gap_is_a_dash(value, words):
    assert plain(value) == words


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (12.3456, 0.0501, "12.346 ± 0.050"),
        (12.3456, 0.0999, "12.35 ± 0.10"),
        (1234.5, 56.7, "1234 ± 57"),
        (12345.0, 567.0, "12340 ± 570"),
        (0.00001234, 0.0000005, "(1.234 ± 0.050)e-05"),
        (5.0, 1e-12, "5.00000 ± 1.0e-12"),
        (0.01, 3.0, "0.0 ± 3.0"),
        (-0.001, 3.0, "0.0 ± 3.0"),
        (7.0, 0.0, "7.000"),
    ],
)
def test_the_error_has_two_digits_and_the_value_ends_where_it_ends(value, error, words):
    assert quantity_text(Quantity(value, error=error)) == words


@pytest.mark.parametrize(
    ("quantity", "words"),
    [
        (Quantity(12.3456, low=12.11, high=12.52), "12.35 [12.11, 12.52]"),
        (Quantity(0.74914, low=0.74854, high=0.75025), "0.7491 [0.7485, 0.7502]"),
        (Quantity(5.0, low=5.0, high=5.0), "5.000"),
        (Quantity(1.0, low=0.001, high=900.0), "1.0 [0.0010, 900]"),
        (Quantity(1000.2, low=1000.1, high=1000.4), "1000.2 [1000.1, 1000.4]"),
        (Quantity(230.9, error=15.2, low=200.1, high=261.8), "231 ± 15 [200, 262]"),
        (Quantity(None, error=1.0, low=0.0, high=2.0), "–"),
    ],
)
def test_an_interval_has_no_more_digits_than_its_width_allows(quantity, words):
    assert quantity_text(quantity) == words


def test_cells_headers_and_shares_in_words():
    assert [cell_text(cell) for cell in (None, 3, 0.5, "words", Quantity(1.0))] == [
        "–",
        "3",
        "0.5000",
        "words",
        "1.000",
    ]
    assert header(Column("a", "trace", "nats")) == "trace (nats)"
    assert header(Column("a", "rank", "1")) == "rank"
    assert percent(0.0612) == "6.1 %"


def test_control_characters_cannot_reach_a_terminal():
    assert printable("a\x1b[31mb\nc") == "a\N{REPLACEMENT CHARACTER}[31mb\N{REPLACEMENT CHARACTER}c"
    assert cell_text("\x07") == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (-math.inf, math.inf, "[\N{MINUS SIGN}∞, ∞]"),
        (0.25, math.inf, "[0.25, ∞]"),
        (-math.inf, 1.0, "[\N{MINUS SIGN}∞, 1.0]"),
    ],
)
def test_an_interval_without_an_end_shows_it(low, high, shown):
    assert quantity_text(Quantity(0.5, low=low, high=high)) == f"0.50 {shown}"


def test_a_number_far_below_its_range_is_not_written_as_zero():
    assert quantity_text(Quantity(0.0012, low=-0.094, high=2.04)) == "0.0012 [-0.094, 2.0]"
    assert quantity_text(Quantity(0.0, low=-0.1, high=2.0)) == "0.0 [-0.1, 2.0]"
    assert quantity_text(Quantity(3.0, low=0.0, high=1.66e10)) == "3.0 [0, 1.7e+10]"


@pytest.mark.parametrize(
    ("quantity", "words"),
    [
        (Quantity(0.1, low=0.001, high=0.25), "0.10 [0.0010, 0.25]"),
        (Quantity(0.1, error=0.06, low=0.004, high=0.25), "0.100 ± 0.060 [0.0040, 0.25]"),
        (Quantity(-0.1, low=-0.25, high=-0.004), "-0.10 [-0.25, -0.0040]"),
        (Quantity(0.1, low=0.0, high=0.25), "0.10 [0.00, 0.25]"),
        (Quantity(0.1, low=0.02, high=0.25), "0.10 [0.02, 0.25]"),
    ],
)
def test_an_end_of_an_interval_is_written_as_zero_only_if_it_is_zero(quantity, words):
    assert quantity_text(quantity) == words
