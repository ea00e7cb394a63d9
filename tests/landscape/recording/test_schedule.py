"""When a recorder samples."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, strategies as st

from lossscope.landscape.recording.cadence import growing, log_spaced


@given(last=st.integers(1, 100_000), count=st.integers(2, 60))
def test_log_spaced_steps_are_distinct_ascending_and_include_both_ends(last: int, count: int) -> None:
    steps = log_spaced(last, count)
    assert len(steps) == min(count, last + 1)
    assert list(steps) == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == last


def test_log_spaced_steps_grow_by_about_equal_ratios_once_they_are_large() -> None:
    steps = log_spaced(100_000, 20)
    ratios = [b / a for a, b in pairwise(steps[8:])]
    assert max(ratios) / min(ratios) < 1.1


def test_no_evaluations_are_no_steps() -> None:
    assert log_spaced(100, 0) == ()
    assert log_spaced(100, 1) == (100,)


@given(step=st.integers(0, 10_000), factor=st.floats(1.0, 4.0))
def test_growing_always_moves_on(step: int, factor: float) -> None:
    assert growing(step, factor) >= max(step + 1, step * factor)
