"""Rule by which sampled intervals of a member fail."""

from __future__ import annotations

import pytest

from zoo.checks import Check
from zoo.outcomes import Outcome


def outcome(misses: int, seeds: int, *, far: bool = False, sampled: bool = True) -> Outcome:
    right, wrong = Check("x", 1.0, 0.9, 1.1, 1.0, sampled), Check("x", 1.0, 0.9, 1.1, 9.0 if far else 1.15, sampled)
    return Outcome(tuple((wrong if seed < misses else right,) for seed in range(seeds)))


@pytest.mark.parametrize(("misses", "seeds", "fails"), [(1, 3, False), (2, 3, True), (7, 40, False), (8, 40, True)])
def test_two_misses_of_three_fail_and_more_than_a_right_interval_has_of_forty(
    misses: int, seeds: int, fails: bool
) -> None:
    assert bool(outcome(misses, seeds).failures) == fails


@pytest.mark.parametrize("seeds", [3, 40])
def test_a_miss_by_more_than_three_half_widths_always_fails(seeds: int) -> None:
    assert outcome(1, seeds, far=True).failures
    assert not outcome(0, seeds, far=True).failures


def test_an_exact_number_never_misses() -> None:
    assert outcome(1, 3, sampled=False).failures
