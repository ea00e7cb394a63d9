from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.objective.autograd_guards import graph_facts, graph_nodes
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.method import BatchProduct, graph_bytes


@pytest.mark.parametrize("name", ["mlp", "conv and group norm", "attention", "batch norm"])
def test_the_memory_of_a_graph_is_what_autograd_saves(name: str, make_case: Any) -> None:
    objective = make_case(name, (300,)).objective()
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with objective.evaluating(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = next(objective.gradients(graph=True))
    saved.pop(batch.leaves[0].untyped_storage().data_ptr(), None)
    made = BatchProduct(lambda rows, keep: rows, batch.parts, batch.leaves)
    # torch packs a few scalars on the way that no node keeps in a tensor of its own
    assert graph_bytes(made) == pytest.approx(sum(saved.values()), rel=0.02)


def test_a_storage_counts_once_and_a_product_that_knows_its_size_reports_it() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = x.exp()
    ends = [(y * y).sum(), y[:500].sin()]
    assert graph_bytes(BatchProduct(lambda rows, keep: rows, ends, [x])) == 4000  # y, whole
    assert graph_bytes(BatchProduct(lambda rows, keep: rows, ends, [x], bytes=7)) == 7
    assert graph_bytes(BatchProduct(lambda rows, keep: rows)) == 0
    assert len({type(node).__name__ for node in graph_nodes(ends)}) == len(list(graph_nodes(ends)))


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * slope


def test_functions_whose_second_derivative_is_not_known_are_found_in_a_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    assert graph_facts(x.exp().sum()).unverified == ()
    assert graph_facts(Double.apply(Double.apply(x)).sum()).unverified == ("Double",)
    assert graph_facts(torch._weight_norm(x[:, None], x[:, None], 0).sum()).unverified == ("WeightNormInterface",)
    assert graph_facts(x.prod() + x.sinc().sum()).unverified == ("Prod", "Sinc")
    slope = torch.autograd.grad(x.tanh().sum(), x, create_graph=True)[0]
    assert graph_facts(slope.square().sum()).unverified == ("TanhBackward",)  # a derivative inside the loss
    objective = Objective(nn.Linear(2, 3), CrossEntropy(), [(torch.ones(2, 2), torch.zeros(2, dtype=torch.long))])
    assert objective.graph is None
    objective.gradient()
    assert objective.graph is not None
    assert objective.graph.unverified == ()


def test_the_unit_of_a_graph_is_that_of_its_coarsest_result_on_the_way_from_the_parameters() -> None:
    x = torch.ones(3, requires_grad=True, dtype=torch.float64)
    assert graph_facts(x.exp().sum()).unit == torch.finfo(torch.float64).eps
    assert graph_facts(x.float().exp().double().sum()).unit == torch.finfo(torch.float32).eps
    assert graph_facts((x * torch.ones(3, dtype=torch.bfloat16)).sum()).unit == torch.finfo(torch.float64).eps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = x.float()[None] @ x.float()[:, None]
    assert graph_facts(product.double().sum()).unit == torch.finfo(torch.bfloat16).eps
    norm = torch.layer_norm(x[None], (3,), torch.ones(3).double(), torch.zeros(3).double())
    slope = torch.autograd.grad(norm.square().sum(), x, create_graph=True)[0]
    assert graph_facts(slope.sum()).unit == torch.finfo(torch.float64).eps  # without weights that require grad
