"""Function-preserving rescaling (Dinh et al. 2017): some measures change, invariant ones stay at 1.0000."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.derived import preconditioned, restricted
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.average_case import average_sharpness, low_pass_loss
from lossscope.probes.sharpness.basin import basin_radius
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import (
    adaptive_lambda_max,
    adaptive_trace,
    log_fisher_rao,
    theta_hessian_theta,
)
from lossscope.probes.sharpness.pac_bayes import pac_bayes_sigma
from lossscope.probes.sharpness.sam import sam_sharpness
from lossscope.probes.sharpness.worst_case import worst_case_sharpness

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(60) % 3


def relu_net() -> nn.Sequential:
    """Two layers without a last bias, so that every parameter is rescaled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()


def rescaled(net: nn.Sequential, alpha: float | Tensor) -> nn.Sequential:
    """Return the same function with the first layer multiplied by alpha, or an alpha a neuron, the second divided."""
    other = copy.deepcopy(net)
    factors = torch.as_tensor(alpha, dtype=torch.float64).expand(6)
    with torch.no_grad():
        other[0].weight *= factors[:, None]
        other[0].bias *= factors
        other[2].weight /= factors
    return other


def objective(net: nn.Module) -> Objective:
    return Objective(net, CrossEntropy(), [(X[:40], Y[:40]), (X[40:], Y[40:])])


def stretch(net: nn.Module, alpha: float) -> Tensor:
    """Return the diagonal of the rescaling as a linear map."""
    factors = {"0.weight": alpha, "0.bias": alpha, "2.weight": 1 / alpha}
    return torch.cat(
        [torch.full((p.numel(),), factors[name], dtype=torch.float64) for name, p in net.named_parameters()]
    )


def squared_gradients(net: nn.Module) -> Tensor:
    """Return the mean squared gradient over the samples: the diagonal of the empirical Fisher matrix."""
    total = torch.zeros(sum(p.numel() for p in net.parameters()), dtype=torch.float64)
    for x, y in zip(X, Y, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), list(net.parameters()))
        total += torch.cat([g.reshape(-1) for g in grads]).square()
    return total / len(X)


def top(operator) -> float:
    found = measure_spectrum(operator, top=1, rel=1e-9, quantities=("top",))
    assert bool(found.top.converged[0])
    return float(found.top.values[0])


def whole(net: nn.Module, quantity: str) -> float:
    found = measure_spectrum(hessian(objective(net)), quantities=(quantity,), max_products=100)
    return getattr(found, quantity).value


def orbit_trace(net: nn.Module) -> float:
    """Return the smallest trace over all rescalings, 2 (t1 t2)^(1/2)."""
    H = hessian(objective(net))
    parts = [restricted(H, names) for names in (["0.weight", "0.bias"], ["2.weight"])]
    traces = [float((part @ torch.eye(part.size, dtype=torch.float64)).trace()) for part in parts]
    return 2 * math.sqrt(traces[0] * traces[1])


ALPHAS = {"a third": 1 / 3, "three": 3.0, "neuron by neuron": gaussian(6, seed=3).exp()}

RAW: dict[str, Callable[[nn.Module], float]] = {
    "lambda_max": lambda net: top(hessian(objective(net))),
    "trace": lambda net: whole(net, "trace"),
    "frobenius": lambda net: whole(net, "frobenius"),
    "SAM": lambda net: sam_sharpness(objective(net)).sharpness.value,
    "low-pass filter": lambda net: low_pass_loss(objective(net), sigma=0.3).value - objective(net).value(),
    "average case, one noise for all": lambda net: average_sharpness(objective(net), rho=0.3, relative=False).value,
    "worst case, one radius for all": lambda net: worst_case_sharpness(objective(net), relative=False).sharpness.value,
    "PAC-Bayes sigma": lambda net: pac_bayes_sigma(objective(net)).value,
    # Adam's P is a square root, so only half of the scale cancels
    "sharpness in Adam's metric": lambda net: top(
        preconditioned(hessian(objective(net)), squared_gradients(net).sqrt() + 1e-12)
    ),
}
INVARIANT: dict[str, Callable[[nn.Module], float]] = {
    "loss": lambda net: objective(net).value(),
    "adaptive trace": lambda net: adaptive_trace(objective(net)).value,
    "adaptive lambda_max": lambda net: adaptive_lambda_max(objective(net), rel=1e-9).value,
    "adaptive SAM": lambda net: sam_sharpness(objective(net), rho=0.5, relative=True).sharpness.value,
    "average case": lambda net: average_sharpness(objective(net)).value,
    "worst case": lambda net: worst_case_sharpness(objective(net)).sharpness.value,
    "worst case of every weight": lambda net: (
        worst_case_sharpness(objective(net), rho=0.05, norm="linf").sharpness.value
    ),
    "basin radius": lambda net: basin_radius(objective(net)).value,
    "Fisher-Rao norm": lambda net: math.exp(log_fisher_rao(objective(net)).value),
    "theta' H theta": lambda net: theta_hessian_theta(objective(net)).value,
    "trace on the orbit": orbit_trace,
    "sharpness in the metric of the diagonal Fisher": lambda net: top(
        preconditioned(hessian(objective(net)), squared_gradients(net))
    ),
}


def test_every_unit_is_alive() -> None:
    assert float(squared_gradients(relu_net()).min()) > 0  # a dead unit would make the metrics below singular


@pytest.mark.parametrize("which", ALPHAS)
@pytest.mark.parametrize("measure", RAW)
def test_a_rescaling_changes_raw_curvature_at_will(measure: str, which: str) -> None:
    net, alpha = relu_net(), ALPHAS[which]
    torch.testing.assert_close(rescaled(net, alpha)(X), net(X), rtol=1e-12, atol=1e-14)
    ratio = RAW[measure](rescaled(net, alpha)) / RAW[measure](net)
    assert abs(math.log(ratio)) > math.log(1.15)


def same_at_any_rescaling(measure: str, which: str) -> bool:
    """Return False for a trace along the orbit of layers, which a rescaling of neurons leaves."""
    return measure != "trace on the orbit" or which != "neuron by neuron"


@pytest.mark.parametrize(
    ("measure", "which"), [pair for pair in product(INVARIANT, ALPHAS) if same_at_any_rescaling(*pair)]
)
def test_a_rescaling_does_not_change_what_is_called_invariant(measure: str, which: str) -> None:
    net, alpha = relu_net(), ALPHAS[which]
    assert INVARIANT[measure](rescaled(net, alpha)) / INVARIANT[measure](net) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("alpha", [1 / 3, 3.0])
def test_the_edge_ratio_of_a_step_moves_with_the_step(alpha: float) -> None:
    net = relu_net()
    made, other = objective(net), objective(rescaled(net, alpha))
    step = -0.3 * made.gradient()
    before, after = directional_sharpness(made, step), directional_sharpness(other, stretch(net, alpha) * step)
    assert after.edge_ratio.value == pytest.approx(before.edge_ratio.value, rel=1e-9)
    assert abs(math.log(after.normalized.value / before.normalized.value)) > 0.1
