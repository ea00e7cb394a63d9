"""Every builder returns the same bytes each time, a finite loss and a small model."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from zoo import MEMBERS, Member, Parts

SMALL = [pytest.param(member, id=name) for name, member in MEMBERS.items() if not member.slow]
ALL = [pytest.param(member, id=name, marks=pytest.mark.slow if member.slow else ()) for name, member in MEMBERS.items()]


def losses(parts: Parts) -> list[float]:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)  # of dropout
        warnings.simplefilter("ignore")  # torch's own, of backward(create_graph=True)
        return [float(parts.loss_fn(parts.model, batch).detach()) for batch in parts.batches]


def state(parts: Parts) -> list[Any]:
    modules = (parts.model, *parts.reaches)
    return [tensor.detach().clone() for module in modules for tensor in module.state_dict().values()]


@pytest.mark.parametrize("member", ALL)
def test_a_builder_returns_the_same_bytes_and_leaves_the_random_state(member: Member) -> None:
    before = torch.get_rng_state()
    one, two = member.build(), member.build()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(state(one), state(two), strict=True))
    assert losses(one) == losses(two)


@pytest.mark.parametrize("member", SMALL)
def test_a_member_is_small(member: Member) -> None:
    assert 0 < sum(p.numel() for p in member.build().model.parameters()) < 200_000


@pytest.mark.parametrize("member", SMALL)
def test_the_float64_twin_is_the_same_function(member: Member) -> None:
    twin = member.double()
    assert all(p.dtype == torch.float64 for p in twin.model.parameters())
    for mine, wide in zip(losses(member.build()), losses(twin), strict=True):
        assert mine == pytest.approx(wide, rel=max(10 * member.digits, 1e-5))


@pytest.mark.parametrize("member", SMALL)
def test_a_member_trains(member: Member) -> None:
    parts = member.build()
    optimizer = torch.optim.SGD([p for p in parts.model.parameters() if p.requires_grad], 0.05)
    first = sum(losses(parts))
    for _ in range(5):
        for batch in parts.batches:
            optimizer.zero_grad()
            parts.loss_fn(parts.model, batch).backward()
            optimizer.step()
    assert sum(losses(parts)) < first
