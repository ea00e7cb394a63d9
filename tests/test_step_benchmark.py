"""The step benchmark at a small size: its memory and passes are those that the optimizers need."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from helpers import benchmark
from lossscope.optimizer.update import sums

SHAPES = [(300, 200), (300,), (2, 200, 100)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum in chunks that are small beside these weights, as they are beside those of a network."""
    monkeypatch.setattr(sums, "_CHUNK", 1024)


@pytest.fixture(scope="module")
def family() -> Iterator[ModuleType]:
    yield from benchmark("step_family")


@pytest.fixture(scope="module")
def recording() -> Iterator[ModuleType]:
    yield from benchmark("step_recording")


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("torch AdamW", 4, 5.5),  # weights, gradients, two moments; temporaries
        ("adamw", 4, 5.01),
        ("sgd", 2, 3.01),  # the gradients with the decay are one copy more
        ("sam", 5, 5.1),  # weights aside, the move, the second gradient
        ("looksam", 6, 7.02),  # and the shear
        ("ars2-sync", 8, 9.5),
        ("ars2-lazy", 9, 11.5),  # the shear, once more while it is made anew,
    ],
)
def test_peak_memory_counts_what_a_step_holds(family: ModuleType, name: str, least: float, most: float) -> None:
    copies = family.peak_copies(name, SHAPES)
    assert least - 0.01 <= copies <= most


def test_passes_are_those_of_the_training(family: ModuleType) -> None:
    assert family.passes("adamw", 2) == 1
    assert family.passes("ars2-sync", 2) == 2
    assert family.passes("looksam", 5) == 1.2
    assert family.passes("clion", 2) == 1


def test_the_table_has_a_row_for_each_and_ratios_to_adamw(family: ModuleType) -> None:
    table = family.family_table(["muon", "gsam"], SHAPES[:2], rounds=1, repeats=1, steps=1)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["torch AdamW", "muon", "gsam"]
    assert rows[2][2] == rows[2][4] == "1.00"
    assert [row[5] for row in rows[2:]] == ["1.00", "1.00", "2.00"]
    assert all(len(row) == 7 and all(float(cell) > 0 for cell in row[1:]) for row in rows[2:])


@pytest.mark.slow
def test_the_cost_of_recording_is_told_by_instrument(recording: ModuleType) -> None:
    table = recording.recording_table("ars2-lazy", ["economy", "full"], rounds=1, repeats=41)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert [row[0] for row in rows[2:]] == ["not recorded", "economy", "full"]
    assert all(len(row) == 8 for row in rows)
    assert [float(cell) > 0 for cell in rows[3][3:]] == [True, False, False, False, False]
    assert all(float(cell) > 0 for cell in rows[4][3:])
