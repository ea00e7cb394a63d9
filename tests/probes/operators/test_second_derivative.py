from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import gaussian
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.objective.parameters import joined, shaped
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.second_derivative import Pairing


class Copied(TorchDispatchMode):
    """Entries of the results of each function of torch, views apart, among tensors of at least so many."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least = least
        self.entries: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        own = isinstance(found, Tensor) and not func.is_view and found.numel() >= self.least
        self.entries[func.overloadpacket.__name__] += found.numel() if own else 0
        return found


class Tied(nn.Module):
    """An embedding whose weight is the head too, and a layer between them."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(400, 24)
        self.norm = nn.LayerNorm(24)
        self.inner = nn.Linear(24, 24)
        self.head = nn.Linear(24, 400, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.head(F.gelu(self.inner(self.norm(self.embedding(ids)))))
        return found


def language(*, tied: bool) -> Objective:
    torch.manual_seed(0)
    ids = torch.randint(400, (3, 9))
    return Objective(Tied(tied), CrossEntropy(), [(ids[:, :-1], ids[:, 1:])])


@pytest.mark.parametrize("tied", [True, False])
def test_a_product_is_bit_for_bit_the_derivative_of_an_inner_product_with_the_whole_gradient(tied: bool) -> None:
    objective = language(tied=tied)
    model, (ids, labels) = objective.model, objective.data.batches[0]
    v = gaussian(objective.size, dtype=torch.float32)
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(CrossEntropy()(model, (ids, labels)), parameters, create_graph=True)
    along = torch.dot(torch.cat([one.reshape(-1) for one in gradient]), v)
    expected = torch.cat([one.reshape(-1) for one in torch.autograd.grad(along, parameters)])
    H = hessian(objective)
    assert torch.equal(H @ v, expected)
    with H.cached():
        assert all(torch.equal(H @ v, expected) for _ in range(3))


@pytest.mark.parametrize("take", [hessian, gauss_newton])
def test_a_product_copies_its_result_and_nothing_else_of_the_length_of_the_parameters(take: Any) -> None:
    operator = take(language(tied=False))
    v = gaussian(operator.size, dtype=torch.float32)
    with operator.cached():
        operator @ v
        with Copied(least=operator.size) as whole:
            operator @ v
        with Copied(least=24) as parts:
            operator @ v
    assert +whole.entries == {"new_empty": operator.size}
    assert parts.entries["copy_"] == operator.size


def test_the_graph_of_a_gradient_does_not_keep_its_values() -> None:
    theta = gaussian(5).requires_grad_()
    part = torch.autograd.grad((theta**4).sum(), theta, create_graph=True)[0]
    known = weakref.ref(part)
    pairing = Pairing([part])
    del part
    assert known() is None
    v = gaussian(5, seed=1)
    for last in (False, True):
        found = pairing.derivative([v], [theta], last=last)[0]
        torch.testing.assert_close(found, 12 * theta.detach() ** 2 * v)
    with pytest.raises(RuntimeError, match="second time"):
        pairing.derivative([v], [theta], last=False)


def test_parts_without_a_graph_are_constants() -> None:
    theta = gaussian(3).requires_grad_()
    square = theta**2
    constant, along = torch.ones(2), [torch.ones(2), gaussian(3, seed=1)]
    found = Pairing([constant, square]).derivative(along, [theta], last=False)[0]
    torch.testing.assert_close(found, 2 * theta.detach() * along[1])
    assert Pairing([constant]).ends == []
    assert not Pairing([constant]).derivative([torch.ones(2)], [theta], last=True)[0].any()


def test_tensors_are_joined_to_a_vector_and_freed_and_a_vector_is_cut_to_their_shapes() -> None:
    tensors = [gaussian(2, 3).T, gaussian(4, seed=1), gaussian(0), gaussian(seed=2)]
    expected = torch.cat([one.reshape(-1) for one in tensors])
    parts = list(tensors)
    vector = joined(parts)
    assert parts == []
    assert torch.equal(vector, expected)
    assert all(torch.equal(cut, one) for cut, one in zip(shaped(vector, tensors), tensors, strict=True))
    both = shaped(torch.stack([vector, 2 * vector]), tensors)
    assert [tuple(one.shape) for one in both] == [(2, 3, 2), (2, 4), (2, 0), (2,)]
    assert torch.equal(both[0][1], 2 * tensors[0])


def test_a_model_may_modify_one_parameter_in_place_and_use_the_others() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(gaussian(4)), nn.Parameter(gaussian(4, seed=1))

        def forward(self, x: Tensor) -> Tensor:
            found = (self.b * x).exp().sum()  # b is saved for the backward pass
            with torch.no_grad():
                self.a.mul_(0.5)
            return found + (self.a**3).sum()

    model = Halved()
    before = [p.detach().clone() for p in model.parameters()]
    objective = Objective(model, lambda m, x: m(x), [torch.ones(1)] * 3, count=lambda _: 1)
    half = before[0] / 2
    torch.testing.assert_close(objective.gradient(), torch.cat([3 * half**2, before[1].exp()]))
    expected = torch.diag(torch.cat([6 * half, before[1].exp()]))
    for memory in (0, 2**30):
        H = hessian(objective, memory=memory)
        with H.cached():
            for _ in range(2):
                torch.testing.assert_close(H @ torch.eye(8, dtype=torch.float64), expected)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("memory", [0, 2**30])
def test_all_batches_and_products_share_one_copy_of_the_parameters(memory: float, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(3, 5), torch.tensor([0, 1, 2])) for _ in range(4)]
    objective = Objective(nn.Linear(5, 3), CrossEntropy(), batches)
    objective.value()
    H, v, copies = hessian(objective, memory=memory), gaussian(18, dtype=torch.float32), []
    expected = H @ v
    monkeypatch.setattr(objective, "parameters", lambda: copies.append(1) or type(objective).parameters(objective))
    with H.cached():
        for _ in range(3):
            assert torch.equal(H @ v, expected)
        assert len(copies) == 1
    assert torch.equal(H @ v, expected)
    assert len(copies) == 2
