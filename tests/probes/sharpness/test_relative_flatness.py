"""Relative flatness of the last layer: closed forms, dense blocks, what leaves it as it is, and which layer is last."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.rescale import rescaled
from lossscope.probes.objective.losses import CrossEntropy, MeanSquaredError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness.relative_flatness import last_layer, relative_flatness

X = gaussian(31, 4)


def network(hidden: int = 6, classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, classes)).double()


def objective(model: nn.Module, classes: int = 3) -> Objective:
    labels = torch.arange(31) % classes
    return Objective(model, CrossEntropy(), [(X[:20], labels[:20]), (X[20:], labels[20:])])


def closed_form(model: nn.Sequential) -> float:
    """Return the mean of |phi|^2 (sum_c K_cc p_c - p'Kp) over the samples, phi what the last layer reads."""
    with torch.no_grad():
        phi, p, W = model[1](model[0](X)), model(X).softmax(-1), model[2].weight
        K = W @ W.mT
        return float((phi.square().sum(1) * (p @ K.diagonal() - ((p @ K) * p).sum(1))).mean())


def blocks(loss: Tensor, weight: nn.Parameter) -> float:
    """Return the sum over pairs of rows of their product times the trace of their block, from the dense Hessian."""
    slope = torch.autograd.grad(loss, weight, create_graph=True)[0].reshape(len(weight), -1)
    rows, columns = slope.shape
    flat = [torch.autograd.grad(one, weight, retain_graph=True)[0].reshape(-1) for one in slope.reshape(-1)]
    H = torch.stack(flat).view(rows, columns, rows, columns)
    W = weight.detach().reshape(rows, -1)
    return float(torch.einsum("st,sjtj->", W @ W.mT, H))


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (1, 5), (40, 2)])
def test_of_a_softmax_it_is_the_closed_form(shape: tuple[int, int]) -> None:
    model = network(*shape)
    found = relative_flatness(objective(model, shape[1]), rel=1e-9, max_products=400)
    assert found.value == pytest.approx(closed_form(model), rel=1e-8)
    assert found.low <= closed_form(model) <= found.high
    assert found.converged


@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_of_the_scalar_factorization_it_is_one_wherever_it_stands(w: float) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(w)
        model[1].weight.fill_(1 / w)
    one = torch.ones(1, 1, dtype=torch.float64)
    half = Objective(model, lambda net, x: (net(x) - 1).square().mean() / 2, [one])
    assert relative_flatness(half).value == pytest.approx(1, rel=1e-12)


def test_of_a_convolution_it_is_that_of_dense_blocks() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Conv2d(3, 2, 2)).double()
    x, y = gaussian(5, 1, 4, 4), gaussian(5, 2, 2, 2, seed=1)
    found = relative_flatness(Objective(model, MeanSquaredError(), [(x, y)]), rel=1e-9, max_products=400)
    assert found.value == pytest.approx(blocks(F.mse_loss(model(x), y), model[2].weight), rel=1e-8)


def test_of_a_named_layer_it_is_that_of_dense_blocks() -> None:
    model = network()
    found = relative_flatness(objective(model), weight="0.weight", rel=1e-9, max_products=400)
    loss = F.cross_entropy(model(X), torch.arange(31) % 3)
    assert found.value == pytest.approx(blocks(loss, model[0].weight), rel=1e-8)
    with pytest.raises(ProbeError, match=r"several axes, got 2\.bias"):
        relative_flatness(objective(model), weight="2.bias")
    with pytest.raises(ProbeError, match=r"3\.weight"):
        relative_flatness(objective(model), weight="3.weight")


def test_intervals_cover_the_closed_form_and_shrink_with_the_budget() -> None:
    model = network(12, 5)
    right, target = closed_form(model), objective(model, 5)
    found = [relative_flatness(target, rel=1e-3, max_products=20, seed=seed) for seed in range(40)]
    assert sum(not one.low <= right <= one.high for one in found) <= binom.ppf(0.999, 40, 0.05)
    assert not any(one.converged for one in found)
    more = relative_flatness(target, rel=1e-3, max_products=50)
    assert more.high - more.low < min(one.high - one.low for one in found)


def test_a_factor_between_layers_leaves_it_and_factors_of_neurons_do_not() -> None:
    model = network()
    before = relative_flatness(objective(model), rel=1e-9, max_products=400).value
    for alpha in (1 / 3, 3.0):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight *= alpha
            other[0].bias *= alpha
            other[2].weight /= alpha
        after = relative_flatness(objective(other), rel=1e-9, max_products=400).value
        assert after == pytest.approx(before, rel=1e-8)
    after = relative_flatness(objective(rescaled(model, seed=1)), rel=1e-9, max_products=400).value
    assert abs(after / before - 1) > 0.1


class Skip(nn.Module):
    """A network with a path past its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last, self.beside = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.inner(x))) + self.beside(x)


class Tied(nn.Module):
    """A network with one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


def penalized(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + model[2].weight.square().sum()


def of_slopes(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return a loss of derivatives by the inputs, to which the first layer is next."""
    x = batch[0].detach().requires_grad_()
    return torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0].square().mean()


@pytest.mark.parametrize(
    ("model", "loss", "words"),
    [
        (Skip(), CrossEntropy(), "beside.weight|last.weight enters the outputs past"),
        (Tied(), CrossEntropy(), "used before them too"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), penalized, "2.weight.* is used before them too"),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), of_slopes, "0.weight.* is used before them too"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), CrossEntropy(), "original1.* is not the weight of"),
        (nn.PReLU(4), CrossEntropy(), "there is no last layer"),
    ],
)
def test_where_no_layer_is_last_alone_it_is_missing_with_the_reason(model: nn.Module, loss: object, words: str) -> None:
    data = (X.float(), torch.arange(31) % 3)
    with pytest.raises(ProbeError, match=words):
        relative_flatness(Objective(model, loss, [data]))  # type: ignore[arg-type]


def test_a_network_that_the_loss_calls_twice_has_a_last_layer() -> None:
    def apart(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - model(2 * batch) - 1).square().mean()

    model = network()
    found = relative_flatness(Objective(model, apart, [X]), rel=1e-9, max_products=400)
    assert found.value == pytest.approx(blocks(apart(model, X), model[2].weight), rel=1e-8)


def test_the_last_layer_is_found_by_the_graph_not_by_the_order_of_the_modules() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm, self.body = nn.Linear(4, 3, bias=False), nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.body(x)))

    assert last_layer(objective(Backwards().double())) == "head.weight"
