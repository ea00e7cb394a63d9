"""Losses that differentiate by their inputs or by the parameters: PINN, gradient penalty, forces, inner steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from helpers import gaussian
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import adaptive_trace, theta_hessian_theta
from lossscope.probes.sharpness.keskar import keskar_sharpness
from lossscope.probes.sharpness.minibatch import batch_sharpness
from lossscope.probes.sharpness.norm_ball import norm_sharpness
from lossscope.probes.sharpness.per_block import per_module


def slope(out: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(out.sum(), x, create_graph=True)[0]


def pinn(model: nn.Module, batch: Any) -> Tensor:
    x = batch.clone().requires_grad_()
    u = model(x)
    return (slope(slope(u, x), x) + u).square().mean() + (model(0 * x) - 1).square().mean()


def collocation(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss of points that require grad in the batch itself."""
    u = model(x)
    return (slope(u, x) + u).square().mean()


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    x.requires_grad_()  # of the batch itself, as many training loops have it
    return model(x).square().mean() + (slope(model(x), x).square().sum(1).add(1e-12).sqrt() - 1).square().mean()


def functional(model: nn.Module, x: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())

    def one(point: Tensor) -> Tensor:
        return functional_call(model, parameters, (point[None],)).sum()

    return (vmap(grad(one))(x) + 0.5).square().mean()


def inner_step(model: nn.Module, x: Tensor) -> Tensor:
    """Return the loss after a step of gradient descent, through which it is differentiated."""
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(model(x).square().mean(), list(parameters.values()), create_graph=True)
    moved = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    return (functional_call(model, moved, (x,)) - 1).square().mean()


class Potential(nn.Module):
    """Energy and forces, as interatomic potentials return them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.requires_grad_()
        energy = self.net(x)
        return energy, -slope(energy, x)


def forces(model: nn.Module, x: Tensor) -> Tensor:
    energy, force = model(x.clone())
    return energy.square().mean() + (force - 1).square().mean()


LOSSES: dict[str, Callable[[nn.Module, Any], Tensor]] = {
    "pinn": pinn, "collocation": collocation, "penalty": penalty, "functional": functional, "inner step": inner_step,
    "forces": forces,
}  # fmt: skip


def made(name: str, dtype: torch.dtype = torch.float64) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    model = Potential(net) if name == "forces" else net
    batches = [gaussian(n, 2, seed=n).to(dtype).requires_grad_(name == "collocation") for n in (6, 3)]
    return Objective(model, LOSSES[name], batches, additive=name != "inner step")


def true_gradient(objective: Objective, theta: Tensor) -> Tensor:
    """Return the gradient as a training loop would compute it."""
    with objective.at(theta):
        parameters = list(objective.model.parameters())
        for p in parameters:
            p.grad = None
        for batch, weight in zip(objective.data.batches, objective.data.weights, strict=True):
            (weight * objective.loss_fn(objective.model, batch.detach().requires_grad_(batch.requires_grad))).backward()
        found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
        for p in parameters:
            p.grad = None
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_value_gradient_and_hessian_are_those_of_a_training_loop(name: str) -> None:
    objective = made(name)
    theta, batches = objective.parameters(), objective.data.batches
    needed = [batch.requires_grad for batch in batches]
    pairs = zip(batches, objective.data.weights, strict=True)
    expected = sum(
        w * float(objective.loss_fn(objective.model, b.detach().requires_grad_()).detach()) for b, w in pairs
    )
    assert objective.value() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(objective.gradient(), true_gradient(objective, theta))
    v, h = gaussian(objective.size, seed=7), 1e-5
    differences = (true_gradient(objective, theta + h * v) - true_gradient(objective, theta - h * v)) / (2 * h)
    for method in ("reverse", "differences"):
        H = hessian(objective, method=method)
        torch.testing.assert_close(H @ v, differences, rtol=1e-5, atol=1e-6)
        assert H.method == method
    assert [batch.requires_grad for batch in batches] == needed
    assert all(batch.grad is None for batch in batches)
    assert all(p.grad is None for p in objective.model.parameters())


MEASURES: dict[str, Callable[[Objective], Any]] = {
    "spectrum": lambda o: measure_spectrum(hessian(o), top=1).top.estimate(),
    "radial": theta_hessian_theta,
    "adaptive trace": lambda o: adaptive_trace(o, max_products=8),
    "norm": lambda o: norm_sharpness(o, "spectral", restarts=1, max_products=10).sharpness,
    "directional": lambda o: directional_sharpness(o, torch.ones(o.size)).curvature,
    "batch": lambda o: batch_sharpness(o).ratio_of_means,
    "keskar": lambda o: keskar_sharpness(o, max_evaluations=12).sharpness,
    "blocks": lambda o: per_module(o, rel=0.5, max_products=20).trace,
}


@pytest.mark.parametrize("name", ["pinn", "inner step"])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_takes_such_a_loss(measure: str, name: str) -> None:
    objective = made(name, torch.float32)
    with torch.no_grad():  # as an evaluation in a training loop may have it
        found = MEASURES[measure](objective).value
    assert abs(found) > 1e-6


def test_no_graph_is_kept_of_a_loss_without_derivatives_inside() -> None:
    seen: list[bool] = []

    def plain(model: nn.Module, x: Tensor) -> Tensor:
        seen.append(model(x).requires_grad)
        return model(x).square().mean()

    Objective(made("pinn").model, plain, [gaussian(4, 2)]).value()
    assert seen
    assert not any(seen)


class Forces:
    """Outputs that are themselves derivatives."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        x = batch.clone().requires_grad_()
        return slope(model(x), x)

    def of_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return (outputs - 1).square().mean()

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.of_outputs(self.outputs(model, batch), batch)


def test_outputs_that_are_derivatives_have_a_gauss_newton_matrix() -> None:
    objective = Objective(made("pinn").model, Forces(), made("pinn").data.batches)
    theta, v = objective.parameters(), gaussian(objective.size, seed=3)

    def outputs(x: Tensor, shift: float) -> Tensor:
        with objective.at(theta + shift * v):
            return Forces().outputs(objective.model, x).detach()

    batches, weights = objective.data.batches, objective.data.weights
    tangents = [(outputs(x, 1e-6) - outputs(x, -1e-6)) / 2e-6 for x in batches]
    expected = sum(w * 2 * float(u.square().mean()) for w, u in zip(weights, tangents, strict=True))
    for method in ("reverse", "forward"):
        assert float(v @ (gauss_newton(objective, method=method) @ v)) == pytest.approx(expected, rel=1e-6)
