"""Parameters whose entries share memory are refused; those that only share a storage are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective


class Two(nn.Module):
    def __init__(self, a: Tensor, b: Tensor, *, trainable: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=trainable)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.a.sum()).mean() + self.b.square().sum()


def objective(model: nn.Module) -> Objective:
    return Objective(model, lambda m, x: m(x), [torch.ones(3)])


whole = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (whole, whole, "a and b share memory"),
        (whole[:2], whole[1:], "a and b share memory"),
        (whole[:, :2], whole[:, 1:], "a and b share memory"),
        (torch.ones(2), torch.ones(1).expand(4), "b is expanded"),
    ],
)
def test_shared_memory_is_refused(a: Tensor, b: Tensor, words: str) -> None:
    with pytest.raises(ProbeError, match=words):
        objective(Two(a, b))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (whole[:1], whole[1:]),
        (whole[:, :2], whole[:, 2:]),
        (whole[:, ::2], whole[:, 1::2].mT),
        (torch.ones(0), torch.ones(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)),
    ],
)
def test_a_shared_storage_is_not(a: Tensor, b: Tensor) -> None:
    model = Two(a, b.clone() if a.numel() == 0 else b)
    found = objective(model)
    before = model.a.clone()
    with found.at(torch.zeros(found.size)):
        assert torch.equal(model.a, before)
        assert float(model.b.detach().abs().max()) == 0
    assert torch.equal(model.a, before)


def test_tied_parameters_are_one() -> None:
    model = Two(whole, whole + 1)
    model.c = model.b
    assert objective(model).size == 12
