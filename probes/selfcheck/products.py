"""Checks of products: closed forms, symmetry, finite differences, and an unchanged model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.base import SymmetricOperator, from_matrix
from lossscope.probes.operators.derived import preconditioned, scaled
from lossscope.probes.operators.gauss_newton import fisher, gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.selfcheck.check import Place, Reading, check
from lossscope.probes.selfcheck.problems import (
    NETWORKS,
    Parameters,
    dense,
    distance,
    gaussian,
    linear_regression,
    logistic_regression,
    network,
    not_none,
    softmax_regression,
)
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import adaptive_trace

__all__ = ["PRODUCT_CHECKS"]

_ROUNDINGS: Final = 50.0  # largest relative distance of a matrix from its closed form, in units of eps
_OPERATORS: Final[dict[str, Callable[[Objective], SymmetricOperator]]] = {
    "Hessian": hessian,
    "Gauss-Newton": gauss_newton,
    "true Fisher": lambda objective: fisher(objective, kind="true"),
    "empirical Fisher": lambda objective: fisher(objective, kind="empirical"),
}


@check("linear regression", "the Hessian of least squares is 2 X'X / N")
def _linear(place: Place) -> Reading:
    problem = linear_regression(place)
    error = distance(dense(hessian(problem.objective)), problem.hessian)
    return error, _ROUNDINGS * place.eps, "relative distance of the matrices, three uneven batches"


@check("logistic regression", "the Hessian is X' diag(s (1 - s)) X / N")
def _logistic(place: Place) -> Reading:
    problem = logistic_regression(place)
    error = distance(dense(hessian(problem.objective)), problem.hessian)
    return error, _ROUNDINGS * place.eps, "relative distance of the matrices, three uneven batches"


@check("softmax regression", "H = G = true Fisher = mean of J' (diag p - pp') J")
def _softmax(place: Place) -> Reading:
    problem = softmax_regression(place)
    kinds = ("Hessian", "Gauss-Newton", "true Fisher")
    errors = {kind: distance(dense(_OPERATORS[kind](problem.objective)), problem.hessian) for kind in kinds}
    return _worst(errors, _ROUNDINGS * place.eps, "relative distance of the matrices")


@check("empirical Fisher", "softmax regression: the mean of J' (p - y)(p - y)' J")
def _empirical_fisher(place: Place) -> Reading:
    problem = softmax_regression(place)
    error = distance(dense(fisher(problem.objective, kind="empirical")), not_none(problem.empirical_fisher))
    return error, _ROUNDINGS * place.eps, "relative distance of the matrices"


@check("no residual", "H = G if a network fits its targets exactly")
def _no_residual(place: Place) -> Reading:
    fitted = network("tanh", place, (26,))
    pairs = [(x, fitted.model(x).detach()) for x, _ in fitted.data.batches]
    objective = Objective(fitted.model, MeanSquaredError(), pairs)
    error = distance(dense(hessian(objective)), dense(gauss_newton(objective)))
    return error, _ROUNDINGS * place.eps, "relative distance of the matrices, tanh network"


@check("scalar factorization", "(w1 w2 - 1)^2 / 2: sharpness w1^2 + w2^2, invariants 2, 2, 4")
def _scalar_factorization(place: Place) -> Reading:
    errors: dict[str, float] = {}
    for w in (1.0, 2.0, 5.0):
        theta = torch.tensor([w, 1 / w], dtype=place.dtype, device=place.device)
        objective = Objective(Parameters(theta), lambda m, _: (m.theta.prod() - 1) ** 2 / 2, [torch.zeros(1)])
        H = hessian(objective)
        ends = torch.linalg.eigvalsh(dense(H))
        sharpness = w**2 + 1 / w**2
        relative = float(torch.linalg.eigvalsh(dense(scaled(H, theta.abs())))[-1])
        errors |= {
            f"lambda_max at w1 = {w:g}": abs(float(ends[-1]) / sharpness - 1),
            f"lambda_min at w1 = {w:g}": abs(float(ends[0])) / sharpness,
            f"lambda_max of |theta| H |theta| at w1 = {w:g}": abs(relative / 2 - 1),
            f"the adaptive trace at w1 = {w:g}": abs(adaptive_trace(objective).value / 2 - 1),
            f"theta' H theta at w1 = {w:g}": abs(directional_sharpness(objective, theta).curvature.value / 4 - 1),
        }
    return _worst(errors, _ROUNDINGS * place.eps, "relative error")


@check("preconditioned", "P^-1/2 A P^-1/2 has the eigenvalues of P^-1 A")
def _preconditioned(place: Place) -> Reading:
    B = gaussian(12, 12, seed=2).to(place.dtype)
    A, diagonal = (B + B.mT) / 2, gaussian(12, seed=4).to(place.dtype).square() + 0.25
    found = torch.linalg.eigvalsh(dense(preconditioned(from_matrix(A.to(place.device)), diagonal.to(place.device))))
    known = torch.linalg.eigvals(A.double() / diagonal.double()[:, None]).real.sort().values
    # rounding moves the eigenvalues of P^-1 A by the condition of its eigenvectors more (Bauer and Fike 1960)
    condition = float((diagonal.max() / diagonal.min()).sqrt())
    return distance(found, known), _ROUNDINGS * condition * place.eps, "relative distance of the eigenvalues, n = 12"


@check("symmetry", "<Av, w> = <v, Aw> for Hessian, Gauss-Newton and Fisher")
def _symmetry(place: Place) -> Reading:
    errors: dict[str, float] = {}
    for name in NETWORKS:
        objective = network(name, place)
        v, w = gaussian(objective.size, seed=5), gaussian(objective.size, seed=6)
        for kind, operator_of in _OPERATORS.items():
            A = operator_of(objective)
            Av, Aw = (A @ v).cpu().double(), (A @ w).cpu().double()
            lengths = float(Av.norm() * w.norm())
            errors[f"{kind}, {name}"] = abs(float(Av @ w - v @ Aw)) / lengths
    return _worst(errors, _ROUNDINGS * place.eps, "relative to |Av| |w|")


@check("finite differences", "Hessian products are differences of gradients")
def _finite_differences(place: Place) -> Reading:
    errors: dict[str, float] = {}
    for name in ("tanh", "attention", "layer norm", "group norm"):
        objective = network(name, place)
        v = gaussian(objective.size, seed=5)
        v /= v.norm()
        errors[name] = distance(hessian(objective) @ v, _difference(objective, v))
    # the error of a fourth-order difference with the best step is eps^(4/5) times the rate of change of the curvature
    return _worst(errors, 50 * place.eps**0.8, "relative distance of the products")


@check("trace of a ReLU network", "tr H = tr G, as the network is piecewise linear")
def _relu(place: Place) -> Reading:
    objective = network("ReLU", place, (26,))
    H, G = dense(hessian(objective)), dense(gauss_newton(objective))
    errors = abs(float(H.trace() - G.trace())) / float(H.norm())
    different = distance(H, G)
    detail = f"relative to |H|, n = {objective.size}; the matrices themselves differ by {different:.2g}"
    return errors, _ROUNDINGS * place.eps, detail


@check("nothing left behind", "a measurement changes neither the model nor the random state")
def _nothing_left(place: Place) -> Reading:
    objective = network("tanh", place)
    net = nn.Sequential(objective.model, nn.BatchNorm1d(3, dtype=place.dtype, device=place.device)).train()
    watched = Objective(net, objective.loss_fn, objective.data.batches[:2], mode="frozen")
    watched.model(watched.data.batches[0][0]).sum().backward()
    before = _state(net)
    measure_spectrum(hessian(watched), top=2, max_products=60)
    after = _state(net)
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    return float(len(changed)), 0.0, f"{', '.join(changed) or 'none'} of {len(before)} states changed"


def _difference(objective: Objective, v: Tensor) -> Tensor:
    """Return the derivative of the gradient along a unit vector, by a fourth-order central difference."""
    theta = objective.parameters().cpu().double()
    h = 0.4 * float(torch.finfo(objective.dtype).eps) ** 0.2
    total = torch.zeros_like(theta)
    for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        with objective.at(theta + steps * h * v):
            total += weight * objective.gradient().cpu().double()
    return total.div(12 * h)


def _state(net: nn.Module) -> dict[str, Tensor]:
    """Return all state of a network, and the random state, that a measurement could change."""
    found = {name: copy.deepcopy(value) for name, value in net.state_dict().items()}
    for name, p in net.named_parameters():
        found[f"gradient of {name}"] = torch.zeros(0) if p.grad is None else p.grad.clone()
        found[f"requires_grad of {name}"] = torch.tensor(p.requires_grad)
    for name, module in net.named_modules():
        found[f"mode of {name or 'the network'}"] = torch.tensor(module.training)
    if next(net.parameters()).is_cuda:
        found["the random state of the device"] = torch.cuda.get_rng_state()
    return found | {"the random state": torch.get_rng_state()}


def _worst(errors: dict[str, float], bound: float, words: str) -> Reading:
    """Return the largest of several errors with its name; nan counts as the largest."""
    name, error = max(errors.items(), key=lambda item: (item[1] != item[1], item[1]))
    return error, bound, f"{words}; the largest of {len(errors)}: {name}"


PRODUCT_CHECKS: Final = (
    _linear,
    _logistic,
    _softmax,
    _empirical_fisher,
    _no_residual,
    _scalar_factorization,
    _preconditioned,
    _symmetry,
    _finite_differences,
    _relu,
    _nothing_left,
)
