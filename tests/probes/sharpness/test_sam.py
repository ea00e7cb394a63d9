"""SAM sharpness: closed forms, an independent implementation, minibatches, refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from helpers import Vector, gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.sam import sam_sharpness
from lossscope.probes.sharpness.worst_case import worst_case_sharpness
from lossscope.probes.statistics.estimate import mean_estimate


def network() -> Objective:
    x, y = gaussian(60, 4), torch.arange(60) % 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    return Objective(net, CrossEntropy(), [(x[:20], y[:20]), (x[20:], y[20:])])


@pytest.mark.parametrize("relative", [True, False])
def test_on_a_quadratic_it_is_its_second_order_expansion(*, relative: bool) -> None:
    eigenvalues, theta = gaussian(30).exp(), gaussian(30, seed=1)
    objective = Objective(Vector(theta), lambda m, x: x[0] * (eigenvalues * m.theta**2).sum() / 2, [torch.ones(1)])
    slope, D = eigenvalues * theta, theta if relative else torch.ones(30)
    u = D * slope / (D * slope).norm()
    right = 0.3 * float((D * slope).norm()) + 0.3**2 * float((eigenvalues * (D * u) ** 2).sum()) / 2
    found = sam_sharpness(objective, rho=0.3, relative=relative)
    assert found.sharpness.value == pytest.approx(right, rel=1e-12)
    assert found.sharpness.low <= right <= found.sharpness.high
    assert found.first_order == pytest.approx(0.3 * float((D * slope).norm()), rel=1e-12)


@pytest.mark.parametrize(("rho", "relative"), [(0.05, False), (0.5, False), (0.5, True)])
def test_another_implementation_of_sam_takes_the_same_step(rho: float, *, relative: bool) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    objective, losses = network(), []
    for x, y in objective.data.batches:
        net = copy.deepcopy(objective.model)
        ascent = library.SAM(net.parameters(), torch.optim.SGD, rho=rho, adaptive=relative, lr=0.1)
        before = nn.functional.cross_entropy(net(x), y)
        before.backward()
        ascent.first_step(zero_grad=True)
        losses.append(float((nn.functional.cross_entropy(net(x), y) - before).detach()))
    found = sam_sharpness(objective, rho=rho, relative=relative)
    assert found.rises == pytest.approx(losses, rel=1e-6)
    assert found.sharpness.value == pytest.approx(losses[0] / 3 + 2 * losses[1] / 3, rel=1e-6)
    mean = found.sharpness.value
    apart = [2 / 3 * (losses[0] - mean), 4 / 3 * (losses[1] - mean)]  # the second batch is twice as large
    over_batches = mean_estimate([mean + one for one in apart])
    assert (found.sharpness.low, found.sharpness.high) == pytest.approx((over_batches.low, over_batches.high), rel=1e-5)


def test_one_step_finds_no_more_than_the_worst_case_and_less_on_all_data_than_on_batches() -> None:
    objective = network()
    one = sam_sharpness(objective, rho=0.5, relative=True)
    least = worst_case_sharpness(objective, rho=0.5, restarts=1, max_evaluations=3)  # it starts with the same step
    assert one.sharpness.value <= least.sharpness.value < worst_case_sharpness(objective, rho=0.5).sharpness.value
    whole = sam_sharpness(objective, rho=0.5, relative=True, per_batch=False)
    assert len(whole.rises) == 1
    assert whole.sharpness.value < one.sharpness.value


def test_a_rise_below_the_rounding_of_the_loss_has_not_converged() -> None:
    far = Objective(Vector(torch.ones(5)), lambda m, x: x[0] * m.theta.sum() + 1e4, [torch.ones(1)])
    found = sam_sharpness(far, rho=0.05).sharpness
    assert found.low <= 0.05 * math.sqrt(5) <= found.high
    assert not found.converged
    assert "rounding error" in found.cause


def test_batches_of_other_sizes_with_one_rise_have_no_error() -> None:
    x, y = gaussian(8, 4), torch.arange(8) % 3
    batches = [(x.repeat(times, 1), y.repeat(times)) for times in (5, 5, 5, 1)]
    found = sam_sharpness(Objective(network().model, CrossEntropy(), batches))
    assert found.rises == pytest.approx([found.rises[0]] * 4, rel=1e-9)
    assert found.sharpness.stderr < 1e-9 * found.sharpness.value
    assert found.sharpness.high == pytest.approx(found.sharpness.value, rel=1e-6)


def refused(loss: Any, message: str, **options: Any) -> None:
    with pytest.raises(ProbeError, match=message):
        sam_sharpness(Objective(Vector(torch.ones(3)), loss, [torch.ones(1)]), **options)


def test_a_step_that_does_not_exist_is_refused() -> None:
    refused(lambda m, x: x[0] * (m.theta - 1).square().sum(), "gradient is zero")
    refused(lambda m, x: x[0] * torch.where(m.theta[0] > 1.1, math.inf, m.theta.sum()), "loss is inf after", rho=1.0)
    refused(lambda m, x: x[0] * m.theta.sum(), "rho must be positive", rho=-1.0)
    with pytest.raises(ProbeError, match="all weights are zero"):
        sam_sharpness(Objective(Vector(torch.zeros(3)), lambda m, x: m.theta.sum(), [torch.ones(1)]), relative=True)
    coarse = Objective(Vector(torch.ones(3).bfloat16()), lambda m, x: m.theta.sum(), [torch.ones(1)])
    with pytest.raises(ProbeError, match="convert the model to float32"):
        sam_sharpness(coarse)
