"""A parameter that a loss uses past the model is the parameter that varies, or the objective refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian


class Squared(torch.autograd.Function):
    """Square whose argument torch functions do not see."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return p * p

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slopes[0]


def objective(square: Any, *, mode: Any = "eval") -> Objective:
    model = nn.Linear(2, 1, bias=False)
    weight = model.weight
    return Objective(model, lambda m, x: m(x).square().mean() + square(weight), [torch.eye(2)], mode=mode)


@pytest.mark.parametrize(
    "square",
    [
        lambda p: p.square().sum(),
        lambda p: torch.stack([p[0, 0], p[0, 1]]).square().sum(),
        lambda p: torch.cat([p, p * 0]).pow(2).sum(),
        lambda p: torch.linalg.norm(input=p) ** 2,
    ],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_term_of_a_closed_over_parameter_has_its_derivatives(square: Any, mode: Any) -> None:
    loss = objective(square, mode=mode)
    v = torch.tensor([1.0, -2.0])
    assert torch.allclose(loss.gradient(), 3 * loss.parameters())
    assert torch.allclose(hessian(loss) @ v, 3 * v)
    assert torch.allclose(hessian(loss.in_double()) @ v.double(), 3 * v.double())
    assert torch.allclose(loss.restricted(loss.names).gradient(), 3 * loss.parameters())


def test_a_term_that_cannot_be_redirected_is_refused() -> None:
    loss = objective(lambda p: Squared.apply(p).sum())
    with pytest.raises(ProbeError, match="uses the parameter weight past the model"):
        loss.value()


def test_a_detached_parameter_is_a_constant() -> None:
    loss = objective(lambda p: p.detach().square().sum())
    assert torch.allclose(loss.gradient(), loss.parameters())


def test_the_parameter_of_another_network_is_a_constant() -> None:
    other = nn.Linear(2, 1, bias=False)
    loss = Objective(nn.Linear(2, 1, bias=False), lambda m, x: (m(x) - other(x)).square().mean(), [torch.eye(2)])
    assert torch.allclose(loss.gradient(), loss.parameters() - other.weight.detach().flatten())


def test_some_of_the_parameters_are_measured_where_the_loss_differentiates_by_all_of_them() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        plain = F.cross_entropy(model(batch[0]), batch[1])
        slopes = torch.autograd.grad(plain, list(model.parameters()), create_graph=True)
        return plain + 0.1 * torch.stack([slope.square().sum() for slope in slopes]).sum()

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    objective = Objective(net, loss, [(torch.randn(6, 3), torch.arange(6) % 2)])
    part, where = objective.restricted(["0.bias"]), objective.vector.indices(["0.bias"])
    assert torch.allclose(part.gradient(), objective.gradient()[where], atol=1e-6)
    v = torch.randn(4)
    whole = torch.zeros(objective.size)
    whole[where] = v
    assert torch.allclose(hessian(part) @ v, (hessian(objective) @ whole)[where], atol=1e-5)
