from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import Identity, dense
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import from_matrix
from lossscope.probes.operators.derived import preconditioned, restricted, scaled
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator

OPERATORS: dict[str, Callable[[Objective], ObjectiveOperator]] = {
    "hessian": hessian,
    "forward": lambda o: hessian(o, method="forward"),
    "differences": lambda o: hessian(o, method="differences"),
    "gauss_newton": gauss_newton,
    "true fisher": fisher,
    "empirical fisher": lambda o: fisher(o, "empirical"),
    "scaled": lambda o: scaled(hessian(o), torch.linspace(-1, 2, o.size)),
    "preconditioned": lambda o: preconditioned(gauss_newton(o), torch.linspace(0.5, 2, o.size)),
    "block of a block": lambda o: restricted(hessian(o), [n for n in o.names if n != "head.weight"]),
}


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("names", [["first.weight"], ["second.bias", "first.bias"]])
def test_a_block_is_that_of_the_dense_matrix(make: str, names: list[str], make_case: Any) -> None:
    whole = OPERATORS[make](make_case("tied").objective())
    block = restricted(whole, names)
    where = whole.objective.vector.indices(names)
    assert len(where) == block.size < whole.size
    bound = 1e-6 if make == "differences" else 1e-10
    torch.testing.assert_close(dense(block), dense(whole)[where][:, where], rtol=bound, atol=bound)
    assert block.products == block.size
    assert set(block.names) == set(names)


def test_a_block_is_a_hessian_of_its_own_objective_and_leaves_the_others_where_they_are(make_case: Any) -> None:
    objective = make_case("mlp").objective()
    block = restricted(hessian(objective), ["2.weight"])
    part = block.objective
    assert block.is_hessian
    assert part.value() == objective.value()
    torch.testing.assert_close(part.gradient(), objective.gradient()[objective.vector.indices(["2.weight"])])
    with part.at(torch.zeros(part.size)):
        found = block @ torch.arange(block.size)
        assert not objective.model[2].weight.any()
        assert objective.model[0].weight.any()
    assert not torch.allclose(found, block @ torch.arange(block.size))
    assert objective.model[0].weight.grad is None


def test_a_block_of_the_last_layer_does_not_go_back_to_the_first() -> None:
    seen: list[str] = []

    class Watched(Identity):
        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            seen.append("backward")
            return slope.clone()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(Watched.apply(torch.tanh(self.first(x))))

    H = hessian(Objective(Net(), CrossEntropy(), [(torch.ones(6, 4), torch.arange(6) % 3)]))
    restricted(H, ["last.weight"]) @ torch.ones(15)
    assert not seen
    restricted(H, ["first.weight"]) @ torch.ones(20)
    assert seen


@pytest.mark.parametrize("make", ["hessian", "forward", "gauss_newton", "empirical fisher"])
def test_a_block_the_loss_does_not_contain_is_zero(make: str, make_case: Any) -> None:
    net = nn.ModuleDict({"unused": nn.Linear(2, 2), "used": make_case("mlp").net}).double()
    loss = type("Inner", (CrossEntropy,), {"logits": lambda self, model, batch: model["used"](batch[0])})()
    whole = OPERATORS[make](Objective(net, loss, make_case("mlp").pairs))
    block = restricted(whole, ["unused.weight"])
    with block.cached():
        assert not dense(block).any()


def test_unknown_names_are_refused(make_case: Any) -> None:
    H = hessian(make_case("frozen parameters").objective())
    with pytest.raises(ProbeError, match=r"unknown parameter '0.weight': use names of the 2 .+ such as '0.bias'"):
        restricted(H, ["0.bias", "0.weight"])
    with pytest.raises(ProbeError, match="names must have at least 1 of the 2 trainable parameters, got 0"):
        restricted(H, [])
    assert restricted(H, "0.bias").size == 5  # a string is one name, not a sequence of letters
    with pytest.raises(
        ProbeError, match=r"operator must have an objective whose parameters have names, got one without \(matrix\)"
    ):
        restricted(from_matrix(torch.eye(3)), ["0.bias"])
