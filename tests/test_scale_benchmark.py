"""The scale benchmark at a tiny size: its numbers are right, and arms that fail or are too slow are printed as such."""

from __future__ import annotations

import importlib
import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterator

import pytest
import torch

from helpers import benchmark


@pytest.fixture(scope="module")
def arms() -> Iterator[object]:
    yield from benchmark("scale_arms")


@pytest.fixture(scope="module")
def scale() -> Iterator[object]:
    yield from benchmark("scale")


@pytest.fixture(scope="module")
def truth(arms):
    with torch.random.fork_rng():
        return arms.reference("tiny")


def test_the_shapes_have_the_parameters_of_their_names(arms):
    shapes = importlib.import_module("scale_networks").SHAPES
    with torch.device("meta"):
        shape = shapes["124M"]
        model = importlib.import_module("scale_networks").Gpt(shape.layers, shape.width, shape.heads, shape.vocabulary)
        assert sum(p.numel() for p in model.parameters()) == 123_702_528
        assert sum(p.numel() for p in importlib.import_module("scale_networks").resnet18().parameters()) == 11_173_962


@pytest.mark.parametrize("arm", ["bound", "residual"])
def test_our_arms_find_what_the_reference_has(arms, truth, arm):
    with torch.random.fork_rng():
        found = arms.run("tiny", arm, 0)
    assert found.size == 5360
    assert found.top == pytest.approx(truth.top, rel=0.05)
    assert found.trace == pytest.approx(truth.trace, rel=0.45)
    assert 4 <= found.products < 100
    assert 0 < found.gradient < found.seconds
    assert found.peak > 4 * found.size


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_the_prediction_is_printed_beside_what_was_taken(arms):
    with torch.random.fork_rng():
        (found,) = arms.budgets("tiny", 8)
    assert (found.label, found.products, found.size) == ("three vectors", arms.BUDGETED, 5360)
    assert "of the bytes" in found.remark
    share = float(found.remark.split()[-4])
    assert 0.1 < share < 10  # of the time


def test_an_arm_that_raises_or_takes_too_long_says_so(arms, scale, monkeypatch, capsys):
    monkeypatch.setattr(arms, "limit_memory", lambda room: None)
    monkeypatch.setitem(arms.ARMS, "broken", ("", lambda problem, seed: 1 / 0))
    with torch.random.fork_rng():
        arms.main(["tiny", "broken", "1", "0", "1e9"])
    outcome = arms.Outcome(**json.loads(capsys.readouterr().out)[0])
    assert outcome.remark == "failed: ZeroDivisionError: division by zero"
    assert scale.row(outcome, "tiny", 1, None)[3:] == [*["-"] * 8, outcome.remark]
    given = Namespace(seed=0, room=1, limit=0.01)
    assert scale.outcomes("tiny", "bound", 1, given)[0].remark == "not finished in 0.01 s"


def test_a_value_that_is_far_off_is_called_wrong(arms, scale):
    truth = arms.Outcome("reference", top=2.0, trace=10.0)
    found = arms.Outcome("x", "", 100, 7, 3.0, 0.5, 2**30, 4000, 1.5, 12.0)
    assert scale.row(found, "tiny", 1, truth)[2:] == [
        *("x", "7", "6.0", "3.0", "1.00", "10.0", "1.5", "25", "20", "wrong"),
    ]
    assert math.isnan(scale.copies(arms.Outcome("y")))
