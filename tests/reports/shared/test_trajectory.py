"""Bars and tables of evaluations: every value where it was measured, gaps as gaps, few rows of many evaluations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lossscope.landscape.run import Run
from lossscope.landscape.storage.run_store import RunStore
from lossscope.reports import flatness, render, sharpness
from lossscope.reports.content import Quantity, Table
from lossscope.reports.shared.trajectory import bars, trajectory_tables

MEASURES = (("loss", "train loss", "nats"), ("lambda_max", "λ_max", "nats"), ("trace", "trace", "nats"))


def written(path: Path, values: dict[int, float | None], *, arm: str = "one", seed: int = 0) -> Run:
    store = RunStore.create(path, {"arm": arm, "seeds": {"init": seed}})
    for step, value in values.items():
        store.append("steps", {"step": step, "loss": 1.0})
        store.append("probes", {"step": step, "measure": "loss", "value": 1 / step})
        ends = {} if value is None else {"low": value - 0.1, "high": value + 0.1}
        store.append("probes", {"step": step, "measure": "lambda_max", "value": value, **ends})
    store.close("finished", "done")
    return Run.open(path)


def cells(table: Table) -> list[dict[str, object]]:
    return [dict(zip([column.key for column in table.columns], row, strict=True)) for row in table.rows]


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([1, 8], "▁█"),
        ([3, 3, 3], "▁▁▁"),
        ([1, None, 8], "▁·█"),
        ([None, None], "··"),
        ([], ""),
        ([1, 10, 100, 1000], "▁▃▆█"),  # logarithmic
        ([-1, 0, 1], "▁▅█"),
    ],
)
def test_bars_rise_with_the_values_and_leave_gaps(values: list[float | None], drawn: str) -> None:
    assert bars(values) == drawn


def test_many_values_are_thinned_with_both_ends() -> None:
    drawn = bars([float(i) for i in range(1000)])
    assert (len(drawn), drawn[0], drawn[-1]) == (24, "▁", "█")


def test_a_row_has_first_last_and_largest_with_its_step(tmp_path: Path) -> None:
    (lines, every) = trajectory_tables([written(tmp_path / "a", {1: 2.0, 5: 9.0, 9: 3.0})], MEASURES)
    loss, top = cells(lines)
    assert (top["first"], top["last"], top["largest"], top["step"]) == (
        Quantity(2.0, error=pytest.approx(0.1)),
        Quantity(3.0, error=pytest.approx(0.1)),
        Quantity(9.0, error=pytest.approx(0.1)),
        5,
    )
    assert (top["bars"], loss["bars"]) == ("▁█▂", "█▂▁")
    assert [row["step"] for row in cells(every)] == [1, 5, 9]
    assert "trace" not in {column.key for column in every.columns}


def test_a_missing_value_is_missing_in_both(tmp_path: Path) -> None:
    (lines, every) = trajectory_tables([written(tmp_path / "a", {1: 2.0, 5: None, 9: 3.0})], MEASURES)
    assert cells(lines)[1]["bars"] == "▁·█"
    assert cells(every)[1]["lambda_max"] == Quantity(None)


def test_seeds_are_summarized_by_median_and_range(tmp_path: Path) -> None:
    runs = [written(tmp_path / str(k), {1: 1.0 + k, 9: 3.0 + k}, seed=k) for k in range(3)]
    (_, every) = trajectory_tables(runs, MEASURES)
    assert cells(every)[0]["lambda_max"] == Quantity(2.0, low=1.0, high=3.0, known_error=pytest.approx(0.1))


def test_the_table_of_evaluations_stays_short(tmp_path: Path) -> None:
    values = {step: float(step) for step in range(1, 101)}
    (_, every) = trajectory_tables([written(tmp_path / "a", values)], MEASURES)
    steps = [row["step"] for row in cells(every)]
    assert (len(steps), steps[0], steps[-1]) == (12, 1, 100)
    runs = [written(tmp_path / f"arm{k}", {1: 1.0, 9: 2.0}, arm=f"arm{k}") for k in range(5)]
    (lines,) = trajectory_tables(runs, MEASURES)
    assert len(lines.rows) == 10


def test_one_evaluation_has_no_table(tmp_path: Path) -> None:
    assert trajectory_tables([written(tmp_path / "a", {1: 2.0})], MEASURES) == ()


def test_the_reports_have_them(tmp_path: Path) -> None:
    run = written(tmp_path / "a", {1: 2.0, 5: 9.0, 9: 3.0})
    assert "▁█▂" in render(sharpness([run]), "text")
    assert {"trajectory", "evaluations"} <= {table.key for table in flatness([run]).tables}


def test_a_small_late_peak_of_a_falling_series_is_seen() -> None:
    values = [2.0 * 0.995**i + 0.05 for i in range(1200)]
    values[1111] = 0.4
    place, line = 1111 * 24 // 1200, bars(values)
    assert line[place] > line[place - 1]
    assert line[place] > line[place + 1]


@pytest.mark.parametrize("place", [1, 2, 17, 30])
def test_a_peak_of_a_few_values_more_than_bars_is_seen(place: int) -> None:
    assert "█" in bars([9.0 if i == place else 1.0 + 0.01 * (i % 3) for i in range(31)])


def test_a_peak_between_bars_is_seen_and_only_a_whole_part_without_numbers_is_a_dot() -> None:
    values: list[float | None] = [1.0 + 0.01 * (place % 3) for place in range(1000)]
    values[517], values[700] = 9.0, 0.0
    line = bars(values)
    assert len(line) == 24
    assert (line.count("█"), line.count("▁")) == (1, 1)
    assert line[np.searchsorted(np.cumsum([42] * 16 + [41] * 8), 517, side="right")] == "█"
    values[:42] = [None] * 42
    values[60:70] = [None] * 10
    assert [place for place, letter in enumerate(bars(values)) if letter == "·"] == [0]
