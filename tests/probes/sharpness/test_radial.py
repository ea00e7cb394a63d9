from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.invariant import theta_hessian_theta


class Factors(nn.Module):
    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w, 1 / w], dtype=torch.float64))


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_scalar_factorisation_has_four_wherever_it_stands(w: float) -> None:
    found = theta_hessian_theta(Objective(Factors(w), lambda m, _: (m.w[0] * m.w[1] - 1) ** 2 / 2, [torch.zeros(1)]))
    assert found.value == pytest.approx(4, rel=1e-12)
    assert (found.stderr, found.bound, found.products) == (0.0, "exact", 1)


def relu_net() -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()

    def batch(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 4, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        return x, torch.arange(n) % 3

    return Objective(net, CrossEntropy(), [batch(20), batch(7)])


def test_it_is_the_second_difference_of_the_loss_along_the_ray() -> None:
    objective = relu_net()
    theta, step = objective.parameters(), 1e-3
    losses = []
    for factor in (1 - step, 1.0, 1 + step):
        with objective.at(factor * theta):
            losses.append(objective.value())
    second = (losses[0] - 2 * losses[1] + losses[2]) / step**2
    assert theta_hessian_theta(objective).value == pytest.approx(second, rel=1e-5)


@pytest.mark.parametrize("alpha", [1 / 3, 3.0])
def test_a_rescaling_of_the_layers_leaves_it(alpha: float) -> None:
    plain, moved = relu_net(), relu_net()
    with torch.no_grad():
        moved.model[0].weight *= alpha
        moved.model[0].bias *= alpha
        moved.model[2].weight /= alpha
    assert theta_hessian_theta(moved).value == pytest.approx(theta_hessian_theta(plain).value, rel=1e-10)
