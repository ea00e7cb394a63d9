"""Benchmark of associative memories at a tiny size: its gradient, its rules, and what it counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from helpers import benchmark


@pytest.fixture(scope="module")
def memories() -> Iterator[Any]:
    yield from benchmark("associative_memory")


def test_the_direction_is_minus_the_gradient_of_the_loss_at_zero(memories: Any) -> None:
    values, keys = memories.memory(30, 6, seed=1)
    q = memories.frequencies(30, 1.5, None, seed=1)
    W = torch.zeros(6, 6, requires_grad=True)
    logits = keys @ W.mT @ values.mT
    loss = -(q * logits.log_softmax(1).diagonal()).sum()
    torch.testing.assert_close(memories.downhill(values, keys, q), -torch.autograd.grad(loss, W)[0])


def test_the_rules_step_along_the_gradient_and_along_its_polar_factor(memories: Any) -> None:
    values, keys = memories.memory(30, 6, seed=1)
    direction = memories.downhill(values, keys, memories.frequencies(30, 1.0, None, seed=1))
    torch.testing.assert_close(memories.polar(direction).mT @ memories.polar(direction), torch.eye(6))
    near = memories.muon(direction)
    cosine = (near * memories.polar(direction)).sum() / near.norm() / 6**0.5
    assert cosine > 0.95
    assert memories.sgd(direction) is direction


def test_orthonormal_items_are_all_recovered_and_a_wrong_matrix_recovers_none(memories: Any) -> None:
    items = torch.eye(8)
    q = memories.frequencies(8, 1.0, None, seed=0)
    direction = memories.downhill(items, items, q)
    assert [memories.recovered(rule(direction), items, items) for rule in memories.RULES.values()] == [8, 8, 8]
    assert memories.recovered(torch.eye(8).roll(1, 0), items, items) == 0


def test_batches_are_drawn_by_frequency_and_slopes_are_those_of_power_laws(memories: Any) -> None:
    q, drawn = (memories.frequencies(20, 1.0, batch, seed=0) for batch in (None, 200_000))
    torch.testing.assert_close(drawn, q, atol=3e-3, rtol=0)
    assert memories.slope([2, 4, 8], [3 * d**1.7 for d in (2, 4, 8)]) == pytest.approx(1.7)


def test_the_table_has_a_row_for_each_rule_and_muon_holds_more(memories: Any) -> None:
    lines = memories.table(2, items=256, widths=(8, 16))
    assert len(lines) == 2 + len(memories.POWERS) * len(memories.BATCHES) * len(memories.RULES)
    last = {line.split("|")[3].strip(): int(line.split("|")[5]) for line in lines[2:5]}
    assert last["Muon, exact"] > 1.2 * last["SGD"]
