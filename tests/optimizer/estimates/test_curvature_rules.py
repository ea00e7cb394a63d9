"""Rules with passes of their own against their formulas, whose derivatives are taken by other means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian

from helpers import draw
from lossscope.optimizer import create
from lossscope.optimizer.ascent.seeded_noise import SeededNoise

Tensors = dict[str, Tensor]
CLASSES = 3


def network(hidden: int = 6) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(draw(i, *p.shape) / 2)
    return model


def batch(step: int, size: int = 10) -> tuple[Tensor, Tensor]:
    x = draw(100 + step, size, 4)
    return x, x[:, :CLASSES].argmax(1)


def weights(model: nn.Module) -> Tensors:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def loss_at(model: nn.Module, x: Tensor) -> Callable[[Tensors, Tensor], Tensor]:
    """The loss as a function of the weights, for torch.func."""
    return lambda w, y: F.cross_entropy(functional_call(model, w, (x,)), y)


def train(model: nn.Module, optimizer: Any, steps: range) -> dict[int, Tensor]:
    """Train, and return the labels that were drawn, by step."""
    drawn = {}
    for step in steps:
        x, y = batch(step)
        for p in optimizer.passes(model):
            logits = model(x)
            labels = p.labels(logits, y)
            if p.index:
                drawn[step] = labels
            p.backward(F.cross_entropy(logits, labels))
        optimizer.step()
    return drawn


def assert_close(model: nn.Module, expected: Tensors, tolerance: float = 1e-10) -> None:
    for name, w in weights(model).items():
        torch.testing.assert_close(w, expected[name], rtol=tolerance, atol=tolerance)


# -- sophia-g ------------------------------------------------------------------------------------------------------


def test_twelve_steps_of_sophia_are_those_of_the_formula():
    model = network()
    optimizer = create("sophia-g", model, lr=0.02, weight_decay=0.3, betas=(0.8, 0.7), gamma=0.3, period=4)
    w = weights(model)
    drawn = train(model, optimizer, range(12))
    assert list(drawn) == [0, 4, 8]
    m, h = ({name: torch.zeros_like(x) for name, x in w.items()} for _ in range(2))
    clipped = []
    for step in range(12):
        x, y = batch(step)
        slope = grad(loss_at(model, x))(w, y)
        if step in drawn:
            sampled = grad(loss_at(model, x))(w, drawn[step])
            h = {n: 0.7 * h[n] + 0.3 * len(y) * sampled[n] ** 2 for n in w}
        m = {n: 0.8 * m[n] + 0.2 * slope[n] for n in w}
        ratio = {n: m[n].abs() / (0.3 * h[n] + 1e-15) for n in w}
        clipped += [float((r > 1).double().mean()) for r in ratio.values()]
        w = {n: w[n] * (1 - 0.02 * 0.3) - 0.02 * m[n].sign() * ratio[n].clamp(max=1) for n in w}
    assert_close(model, w)
    assert 0.05 < sum(clipped) / len(clipped) < 0.95  # both branches


def test_the_squares_that_sophia_remembers_average_to_the_diagonal_of_the_fisher_matrix():
    model = network()
    optimizer = create("sophia-g", model, lr=0.0, betas=(0.9, 0.0), period=1)
    x, y = batch(0)
    found: dict[str, list[Tensor]] = {name: [] for name in weights(model)}
    for _ in range(300):
        for p in optimizer.passes(model):
            logits = model(x)
            p.backward(F.cross_entropy(logits, p.labels(logits, y)))
        optimizer.step()
        for name, p in model.named_parameters():
            found[name].append(optimizer.state[p]["curvature"].clone())
    w = weights(model)
    chances = functional_call(model, w, (x,)).softmax(-1)
    exact = {name: torch.zeros_like(p) for name, p in w.items()}
    for i in range(len(x)):
        for c in range(CLASSES):
            one = grad(loss_at(model, x[i : i + 1]))(w, torch.tensor([c]))
            for name in w:
                exact[name] += chances[i, c] * one[name] ** 2 / len(x)
    z = torch.cat([_z(torch.stack(rows), exact[name]).flatten() for name, rows in found.items()])
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.7)


def _z(draws: Tensor, exact: Tensor) -> Tensor:
    return (draws.mean(0) - exact) / (draws.std(0) / len(draws) ** 0.5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sophia_agrees_with_theirs_where_the_curvature_is_above_their_floor(decay: float) -> None:
    oracles = pytest.importorskip("pytorch_optimizer")
    mine, theirs = network(), network()
    clip, lr = 0.05, 0.4
    optimizer = create("sophia-g", mine, lr=lr * clip, gamma=clip, weight_decay=decay, betas=(0.9, 0.8), period=1)
    oracle = oracles.SophiaH(
        theirs.parameters(), lr=lr, betas=(0.9, 0.8), p=clip, update_period=1, weight_decay=decay * clip, eps=1e-30
    )
    for step in range(6):
        x, y = batch(step)
        slopes = grad(loss_at(theirs, x))(weights(theirs), y)
        drawn = train(mine, optimizer, range(step, step + 1))[step]
        sampled = grad(loss_at(theirs, x))(weights(theirs), drawn)
        for name, p in theirs.named_parameters():
            p.grad = slopes[name]
        oracle.step(hessian=[len(y) * sampled[name] ** 2 for name, _ in theirs.named_parameters()])
    assert_close(mine, weights(theirs), 1e-9)


# -- adahessian ----------------------------------------------------------------------------------------------------


def dense_products(model: nn.Module, x: Tensor, y: Tensor, z: Tensors) -> Tensors:
    """`Hz` from the dense Hessian."""
    w, found = weights(model), {}
    blocks = hessian(loss_at(model, x))(w, y)
    for name in w:
        rows = [torch.tensordot(blocks[name][other], z[other], dims=z[other].ndim) for other in w]
        found[name] = torch.stack(rows).sum(0)
    return found


def averaged(product: Tensor) -> Tensor:
    return product.abs().mean(1, keepdim=True) if product.ndim == 2 else product.abs()


def signs(model: nn.Module, step: int) -> Tensors:
    named = enumerate(model.named_parameters())
    return {name: SeededNoise("signs", 0, step, i).signs_like(p.detach()) for i, (name, p) in named}


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_eight_steps_of_adahessian_are_those_of_the_formula(power: float) -> None:
    model = network()
    optimizer = create("adahessian", model, lr=0.05, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-3, power=power)
    w = weights(model)
    m, v = ({name: torch.zeros_like(x) for name, x in w.items()} for _ in range(2))
    for step in range(8):
        x, y = batch(step)
        slope = grad(loss_at(model, x))(w, y)
        D = {n: averaged(found) for n, found in dense_products(model, x, y, signs(model, step)).items()}
        train(model, optimizer, range(step, step + 1))
        m = {n: 0.8 * m[n] + 0.2 * slope[n] for n in w}
        v = {n: 0.9 * v[n] + 0.1 * D[n] ** 2 for n in w}
        for n in w:
            root = (v[n] / (1 - 0.9 ** (step + 1))) ** (power / 2)
            w[n] = w[n] * (1 - 0.05 * 0.3) - 0.05 * m[n] / (1 - 0.8 ** (step + 1)) / (root + 1e-3)
        assert_close(model, w)


def test_adahessian_on_a_diagonal_quadratic_is_newton_at_its_first_step():
    curvature = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
    w = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = create("adahessian", [("w", w)], lr=1.0, eps=1e-12)
    for p in optimizer.passes():
        p.backward((curvature * w**2).sum() / 2)
    optimizer.step()
    assert float(w.detach().abs().max()) < 1e-10


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.3}, {"power": 0.5}])
def test_adahessian_agrees_with_theirs_on_the_same_diagonals(settings: dict[str, float]) -> None:
    oracles = pytest.importorskip("pytorch_optimizer")
    mine, theirs = network(), network()
    optimizer = create("adahessian", mine, lr=0.05, eps=1e-4, **settings)
    theirs_settings = {"hessian_power" if key == "power" else key: value for key, value in settings.items()}
    oracle = oracles.AdaHessian(theirs.parameters(), lr=0.05, eps=1e-4, **theirs_settings)
    for step in range(6):
        x, y = batch(step)
        slopes = grad(loss_at(theirs, x))(weights(theirs), y)
        products = dense_products(theirs, x, y, signs(theirs, step))
        for name, p in theirs.named_parameters():
            p.grad = slopes[name]
        oracle.step(hessian=[averaged(products[name]).expand_as(p) for name, p in theirs.named_parameters()])
        train(mine, optimizer, range(step, step + 1))
    assert_close(mine, weights(theirs), 1e-9)


# -- zo-gd ---------------------------------------------------------------------------------------------------------

EIGENVALUES = torch.tensor([3.0, 1.0, 0.5, 0.2, 0.1], dtype=torch.float64)
THRESHOLD = 0.2035286  # sum eta l / (2 (1 - eta l)) = 1, by the roots of its polynomial


def descend(w: Tensor, lr: float, seed: int) -> Tensor:
    """One step on the quadratic with these eigenvalues."""
    p = nn.Parameter(w.clone())
    optimizer = create("zo-gd", [("w", p)], lr=lr, seed=seed)
    for one in optimizer.passes():
        one.backward((EIGENVALUES * p**2).sum() / 2)
    optimizer.step()
    return p.detach()


def test_on_a_quadratic_a_step_is_the_slope_along_the_direction():
    w = draw(3, 5)
    for seed in range(5):
        u = SeededNoise("displacement", seed, 0, 0).normal_like(w)
        expected = w - 0.1 * (u * EIGENVALUES * w).sum() * u
        torch.testing.assert_close(descend(w, 0.1, seed), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("share", [pytest.param(0.7, marks=pytest.mark.slow), 1.0, 1.3])
def test_the_mean_square_is_kept_at_the_known_threshold_and_grows_above_it(share: float) -> None:
    """The second moments of a step are a matrix M times those before; its largest eigenvalue is 1 at the threshold."""
    lr, lam = share * THRESHOLD, EIGENVALUES
    M = torch.diag(1 - 2 * lr * lam + 2 * lr**2 * lam**2) + lr**2 * lam.square()
    values, vectors = torch.linalg.eig(M)
    first = values.real.argmax()
    rate = float(values.real[first])
    assert rate == pytest.approx(1, abs=1e-6) if share == 1 else (rate > 1) == (share > 1)
    squares = vectors.real[:, first].abs()
    left_values, left = torch.linalg.eig(M.T)
    weight = left.real[:, left_values.real.argmax()].abs()
    weight = weight / (weight * squares).sum()
    found = torch.stack([(weight * descend(squares.sqrt(), lr, seed) ** 2).sum() for seed in range(300)])
    error = float(found.std()) / len(found) ** 0.5
    assert float(found.mean()) == pytest.approx(rate, abs=4 * error)
    assert error < 0.3


def test_the_loss_of_a_zeroth_order_step_is_the_mean_of_both():
    w = nn.Parameter(draw(3, 5))
    optimizer = create("zo-gd", [("w", w)], mu=0.1)
    losses = []
    for p in optimizer.passes():
        losses.append(float((EIGENVALUES * w**2).sum().detach() / 2))
        p.backward((EIGENVALUES * w**2).sum() / 2)
    assert float(optimizer.step()) == pytest.approx(sum(losses) / 2, rel=1e-12)
    assert losses[0] != losses[1]


# -- kfac ----------------------------------------------------------------------------------------------------------


def test_six_steps_of_kfac_are_the_gradient_between_two_inverses():
    model = network()
    optimizer = create("kfac", model, lr=0.05, vector_lr=0.0, weight_decay=0.3, damping=0.1, factor_beta=0.6, period=2)
    w = weights(model)
    drawn = train(model, optimizer, range(6))
    assert list(drawn) == [0, 2, 4]
    A: Tensors = {}
    B: Tensors = {}
    for step in range(6):
        x, y = batch(step)
        slope = grad(loss_at(model, x))(w, y)
        if step in drawn:
            hidden = torch.tanh(x @ w["0.weight"].T + w["0.bias"])
            shift = {"0": torch.zeros(len(x), 6).double(), "2": torch.zeros(len(x), CLASSES).double()}

            def shifted(shift: Tensors, x: Tensor = x, labels: Tensor = drawn[step]) -> Tensor:
                inside = torch.tanh(x @ w["0.weight"].T + w["0.bias"] + shift["0"])
                logits = inside @ w["2.weight"].T + w["2.bias"] + shift["2"]
                return F.cross_entropy(logits, labels, reduction="sum")

            g = grad(shifted)(shift)
            new_A = {"0": x.T @ x / len(x), "2": hidden.T @ hidden / len(x)}
            new_B = {layer: g[layer].T @ g[layer] / len(x) for layer in g}
            A = {layer: 0.6 * A[layer] + 0.4 * new_A[layer] if A else new_A[layer] for layer in new_A}
            B = {layer: 0.6 * B[layer] + 0.4 * new_B[layer] if B else new_B[layer] for layer in new_B}
        for layer in ("0", "2"):
            name = f"{layer}.weight"
            left = torch.linalg.inv(B[layer] + 0.1 * torch.eye(len(B[layer])).double())
            right = torch.linalg.inv(A[layer] + 0.1 * torch.eye(len(A[layer])).double())
            w[name] = w[name] * (1 - 0.05 * 0.3) - 0.05 * left @ slope[name] @ right
    assert_close(model, w)


def test_kfac_of_one_layer_at_the_origin_converges_to_the_exact_natural_gradient():
    """All samples have the same probabilities there, so that the Fisher matrix is a Kronecker product."""
    layer = nn.Linear(4, CLASSES, bias=False).double()
    nn.init.zeros_(layer.weight)
    optimizer = create("kfac", layer, lr=0.0, damping=1e-7, factor_beta=0.0)
    x = draw(0, 400, 4) @ draw(1, 4, 4)
    y = (x[:, :CLASSES] + draw(2, 400, CLASSES)).argmax(1)
    slope = grad(loss_at(layer, x))({"weight": layer.weight.detach()}, y)["weight"]
    curvature = hessian(loss_at(layer, x))({"weight": layer.weight.detach()}, y)["weight"]["weight"]
    exact = (torch.linalg.pinv(curvature.reshape(12, 12)) @ slope.flatten()).reshape(slope.shape)
    draws: list[Tensor] = []
    for _ in range(100):
        for p in optimizer.passes(layer):
            logits = layer(x)
            p.backward(F.cross_entropy(logits, p.labels(logits, y)))
        optimizer.step()
        draws.append(optimizer.state[layer.weight]["outputs"].clone())
    inputs = optimizer.state[layer.weight]["inputs"]

    def error(outputs: Tensor) -> float:
        found = torch.linalg.pinv(outputs, rtol=1e-6) @ slope @ torch.linalg.inv(inputs)
        return float((found - exact).norm() / exact.norm())

    of_one = (sum(error(one) ** 2 for one in draws) / len(draws)) ** 0.5
    of_all = error(torch.stack(draws).mean(0))
    assert of_one < 0.1
    assert of_all < of_one / 3  # one in the root of their number, 10, in the mean
