"""The report of a difference: its first screen in the cases that a reader must tell apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lossscope.landscape.analysis.diff import weight_difference
from lossscope.landscape.storage.weight_arrays import SavedWeights, safetensors_weights
from lossscope.landscape.surfaces.difference import Difference, LossChange, ModuleChange, SeedPair
from lossscope.landscape.surfaces.pictures import Path as Line
from lossscope.reports import render
from lossscope.reports.difference.report import difference_report


def saved(folder: Path, name: str, scale: float, **more: torch.Tensor) -> SavedWeights:
    weights = {"in.weight": scale * torch.arange(1.0, 13.0).view(3, 4), "out.weight": torch.ones(2, 3), **more}
    save_file(weights, folder / f"{name}.safetensors")
    return safetensors_weights(folder / f"{name}.safetensors", name)


def line(height: float) -> Line:
    shares = np.linspace(0, 1, 5)
    return Line(shares, 0.5 - 0.25 * shares + height * np.array([0, 0.5, 1, 0.5, 0]), None, 1.0, 0.1)


@pytest.fixture
def found(tmp_path: Path) -> Difference:
    weights = weight_difference(saved(tmp_path, "a", 1.0), saved(tmp_path, "b", 2.0))
    return Difference(weights, path=line(0.75), unit="nats", samples=10, data="abc")


def first_screen(found: Difference) -> str:
    return "\n".join(one.words for one in difference_report(found, "1", "lossscope diff a b").summary)


def change(linear: float, quadratic: float, loss_b: float) -> LossChange:
    return LossChange(1.0, loss_b, loss_b, (ModuleChange("in", 12, linear, 0.0, quadratic, 0.0),), 1e-9, 1e-9, 0.1)


def test_the_first_screen_says_how_far_where_and_the_barrier(found: Difference) -> None:
    words = first_screen(found)
    assert "B is 25.5 away from A, 0.995 times the norm of A, 0.446 times as far as independent weights" in words
    assert "Of the squared distance lie 100 % in in;" in words
    assert "A barrier of 0.75" in words
    assert "two seeds" not in words


def test_a_barrier_without_a_sampling_error_is_told_with_the_reason(found: Difference) -> None:
    assert found.path is not None
    lost = replace(found, path=replace(found.path, missing={"sampling error of the barrier": "too few samples"}))
    report = difference_report(lost, "1", "")
    assert any(one.words.startswith("A barrier of 0.75") for one in report.summary)
    assert any(one.how == "too few samples" for one in report.missing)


@pytest.mark.parametrize(("height", "words"), [(0.125, "higher than"), (2.25, "lower than"), (0.75, "as high as")])
def test_barriers_of_two_seeds_are_told_beside(found: Difference, height: float, words: str) -> None:
    pair = SeedPair("x, y", "arm", found.weights, line(height))
    text = first_screen(replace(found, seeds=(pair,)))
    assert f"; {words} the one pair of two seeds of one optimizer ({height:#.3g})" in text


@pytest.mark.parametrize(
    ("expansion", "words", "severity"),
    [
        (change(-0.5, 0.25, 0.75), "nothing within rounding", "fine"),
        (change(-0.5, 0.25, 0.7), "which leaves -0.0500", "fine"),
        (change(-0.5, 0.25, 1.0), "more than the quadratic term: the expansion does not reach B", "look"),
        (change(-0.5, 0.8, 1.1), "more than the change itself: the expansion does not reach B", "look"),
    ],
)
def test_an_expansion_says_whether_it_reaches(
    found: Difference, expansion: LossChange, words: str, severity: str
) -> None:
    report = difference_report(replace(found, change=expansion), "1", "")
    statement = report.summary[-1]
    assert words in statement.words
    assert statement.severity == severity


@pytest.mark.parametrize(("pairs", "words"), [(1, "one pair has none"), (3, "outside that of 3 with a chance of 50 %")])
def test_a_note_says_what_a_range_of_seeds_can_tell(found: Difference, pairs: int, words: str) -> None:
    report = difference_report(replace(found, seeds=(SeedPair("x, y", "arm", found.weights),) * pairs), "1", "")
    assert any(words in note for note in report.notes)


def test_no_barrier_and_a_lost_path_are_said(found: Difference) -> None:
    assert "No barrier" in first_screen(replace(found, path=line(-1.0)))
    lost = line(1.0)
    lost.losses[2] = np.nan
    assert "no barrier can be told" in first_screen(replace(found, path=lost))


def test_tensors_without_partner_come_first(tmp_path: Path) -> None:
    a, b = saved(tmp_path, "a", 1.0, extra=torch.ones(2)), saved(tmp_path, "b", 2.0)
    report = difference_report(Difference(weight_difference(a, b)), "1", "")
    assert report.summary[0].words.startswith("Not all tensors were compared: 1 in A only")
    assert ("extra", "in A only") in next(one.rows for one in report.tables if one.key == "unmatched")


def test_weights_that_are_not_read_are_not_said_to_be_the_same(tmp_path: Path) -> None:
    a, b = (
        saved(tmp_path, name, 1.0, extra=torch.full((2,), value).to(torch.float8_e5m2))
        for name, value in (("a", 1), ("b", 2))
    )
    report = difference_report(Difference(weight_difference(a, b)), "1", "")
    assert report.summary[0].words.startswith("Not all tensors were compared: 1 of numbers in a type")
    assert "hold the same weights" not in report.summary[1].words


def test_a_text_of_many_modules_has_the_farthest_and_parts_that_add_up(tmp_path: Path) -> None:
    a, b = ({f"m{i}.w": torch.full((2, 2), scale * i) for i in range(1, 9)} for scale in (1.0, 2.0))
    weights = weight_difference(*(saved(tmp_path, name, 1.0, **more) for name, more in (("a", a), ("b", b))))
    modules = tuple(ModuleChange(f"m{i}", 4, 0.1, 0.0, i / 10, 0.0) for i in range(1, 9))
    expansion = LossChange(1.0, 2.0, 2.0, modules, 1e-9, 1e-9, 0.1)
    full = Difference(weights, change=expansion)
    cut = {one.key: one for one in difference_report(full, "1", "", rows=3).tables}
    assert [row[0] for row in cut["modules"].rows] == ["m6", "m7", "m8", "all"]
    assert [row[0] for row in cut["tensors"].rows] == ["m6.w", "m7.w", "m8.w"]
    parts = cut["loss_change"].rows
    assert [row[0] for row in parts] == ["m6", "m7", "m8", "5 others", "all", "remainder", "loss change"]
    assert sum(row[3].value for row in parts[:4]) == pytest.approx(parts[4][3].value)  # type: ignore[union-attr, misc, operator]
    assert len({one.key: one for one in difference_report(full, "1", "").tables}["tensors"].rows) == 10


def test_every_format_renders(found: Difference) -> None:
    pair = SeedPair("x, y", "arm", found.weights, line(0.3))
    full = replace(found, seeds=(pair, pair), change=change(-0.5, 0.25, 0.7), missing={"a": "b"}, same_start=True)
    for form in ("text", "json", "markdown", "html"):
        assert "Leading singular subspaces" in render(difference_report(full, "1", "lossscope diff"), form)  # type: ignore[arg-type]
