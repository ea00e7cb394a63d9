"""Differences of gradients of parameters of very different scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian


def scaled_inputs(scale: float, *, dtype: torch.dtype = torch.float64) -> Objective:
    """Return a network whose first weights are small as its inputs are large, by the same factor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        data = [(torch.randn(n, 4, dtype=dtype) * scale, torch.randint(0, 3, (n,))) for n in (6, 5)]
    with torch.no_grad():
        model[0].weight.div_(scale)
    return Objective(model, CrossEntropy(), data)


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e9])
@pytest.mark.parametrize("of", ["all", "first", "others"])
def test_they_are_right_at_every_scale_of_a_layer_and_know_their_error(scale: float, of: str) -> None:
    objective = scaled_inputs(scale)
    v = torch.randn(objective.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first = objective.vector.indices(["0.weight"])
    if of == "others":
        v[first] = 0
    elif of == "first":
        v = torch.zeros_like(v).index_copy(0, first, v[first])
    exact, differences = hessian(objective), hessian(objective, method="differences")
    expected, found = exact @ v, differences @ v
    error = float((found - expected).norm() / expected.norm())
    assert error < 1e-8
    assert error < 8 * differences.unit < 1e-7


def test_parameters_without_a_gradient_and_empty_ones_are_moved_with_the_others() -> None:
    model = nn.Linear(2, 2, bias=False).double()
    model.unused, model.none = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.zeros(0).double())
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.eye(2).double()])
    v = torch.ones(objective.size).double()
    assert torch.allclose(hessian(objective, method="differences") @ v, hessian(objective) @ v, atol=1e-8)
