"""The balanced point: closed forms, uniqueness on the orbit, and what it leaves as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.training.workloads import built, digits_mlp
from lossscope.probes.errors import ProbeError
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.rescale import rescaled


def scalar_net(*weights: float) -> nn.Sequential:
    """Return a ReLU network of width one without biases."""
    layers: list[nn.Module] = []
    for weight in weights:
        layers += [nn.Linear(1, 1, bias=False, dtype=torch.float64), nn.ReLU()]
        nn.init.constant_(layers[-2].weight, weight)
    return nn.Sequential(*layers[:-1])


def images() -> nn.Module:
    """Return a network with plain, strided, grouped and transposed convolutions, pooling and a flattening."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 6, 3, stride=2, groups=2)),
        *(nn.LeakyReLU(0.1), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 4, 1, groups=4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)),
    )


class Functional(nn.Module):
    """A network of functions of parameters, as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.W, self.b = nn.Parameter(gaussian(5, 36, dtype=torch.float32)), nn.Parameter(torch.ones(5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = F.dropout(x.view(x.size(0), -1), 0.5, self.training) / 2
        return self.head(F.leaky_relu(F.linear(x, self.W, bias=self.b), 0.3))


class Pooled(nn.Module):
    """Functions of a convolution, the mean over its positions, and a linear layer before a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.W, self.hidden, self.head = nn.Parameter(gaussian(4, 1, 3, 3).float()), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.W, None, padding=1)).mean((2, 3))
        return self.head(torch.flatten(2 * torch.abs(self.hidden(x)), 1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (digits_mlp, (64,)),
    "convolutions": (images, (1, 8, 8)),
    "functional": (Functional, (1, 8, 8)),
    "pooled": (Pooled, (1, 6, 6)),
    "sequence": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)), (3, 4)),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = NETWORKS[name]
    return built(build, 3), gaussian(7, *shape, dtype=torch.float32)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_same(found: nn.Module, known: nn.Module, rel: float) -> None:
    for name, value in weights(known).items():
        scale = float(value.abs().max())
        torch.testing.assert_close(weights(found)[name], value, rtol=rel, atol=rel * scale)


def test_two_weights_become_equal() -> None:
    found = balance(scalar_net(8.0, 0.5), batch=torch.ones(1, 1, dtype=torch.float64))
    assert [float(p.detach()) for p in found.model.parameters()] == pytest.approx([2.0, 2.0], rel=1e-12)
    assert found.fixed == ("scale of each of the 1 neurons of 0",)
    assert found.unknown == ()
    assert found.logit_error < 1e-15


def test_a_chain_of_three_is_the_cube_root() -> None:
    found = balance(scalar_net(-64.0, 1e-3, 8.0))
    values = [float(p.detach()) for p in found.model.parameters()]
    assert values == pytest.approx([-(0.512 ** (1 / 3)), 0.8, 0.8], rel=1e-11)
    assert math.isnan(found.logit_error)


def test_a_bias_counts_with_the_incoming_weights() -> None:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), (3.0, 4.0, 20.0, 7.0), strict=True):
            parameter.fill_(value)
    values = [float(p.detach()) for p in balance(net).model.parameters()]
    assert values == pytest.approx([6.0, 8.0, 10.0, 7.0], rel=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_both_sides_of_each_neuron_are_equal_and_the_norm_is_least(name: str) -> None:
    net, x = network(name)
    found = balance(net.double(), batch=x.double())
    assert (found.unknown, found.logit_error < 1e-13) == ((), True)
    least = sum(float(p.square().sum()) for p in weights(found.model).values())
    for seed in range(3):
        other = sum(float(p.square().sum()) for p in weights(rescaled(found.model, seed)).values())
        assert other > least


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_rescaled_copy_has_the_same_balanced_point(name: str, dtype: torch.dtype) -> None:
    net, x = network(name)
    net, x = net.to(dtype), x.to(dtype)
    known = balance(net, batch=x)
    for seed in (0, 1):
        other = rescaled(net, seed)
        for layer, (name, value) in enumerate(weights(net).items()):
            assert not torch.equal(weights(other)[name], value) or layer == len(weights(net)) - 1
        torch.testing.assert_close(other.eval()(x), net.eval()(x), rtol=1e-5, atol=1e-5)
        found = balance(other, batch=x)
        assert_same(found.model, known.model, 1e-5 if dtype == torch.float32 else 1e-10)
        assert found.logit_error < 1e-5


@given(st.integers(0, 1000), st.lists(st.integers(1, 5), min_size=3, max_size=5))
def test_balancing_twice_changes_nothing_more(seed: int, widths: list[int]) -> None:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    net = built(lambda: nn.Sequential(*layers[:-1]), seed).double()
    once = balance(rescaled(net, seed), batch=torch.ones(2, widths[0], dtype=torch.float64)).model
    assert_same(balance(once).model, once, 1e-11)


def test_the_given_network_is_untouched_and_the_new_one_is_like_it() -> None:
    net, x = network("dense")
    net.train()
    net[2].eval()
    net[0].bias.requires_grad_(False).zero_()
    net(x).sum().backward()  # leaves gradients
    before, grads = copy.deepcopy(net.state_dict()), [p.grad for p in net.parameters()]
    random = torch.get_rng_state()
    found = balance(net, batch=x).model
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in net.modules()] == [m.training for m in found.modules()]
    assert list(weights(found)) == list(weights(net))
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in net.parameters()]
    assert all(p.grad is None for p in found.parameters())
    assert not {p.data_ptr() for p in found.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert type(found) is type(net)


@pytest.mark.parametrize("side", ["incoming", "outgoing"])
def test_a_neuron_without_weights_on_one_side_becomes_zero(side: str) -> None:
    net, x = network("dense")
    with torch.no_grad():
        for part in (net[0].weight[3], net[0].bias[3]) if side == "incoming" else (net[2].weight[:, 3],):
            part.zero_()
    found, other = balance(net, batch=x), balance(rescaled(net, 5), batch=x)
    assert all(bool(torch.isfinite(p).all()) for p in found.model.parameters())
    assert not found.model[0].weight[3].any()
    assert not found.model[0].bias[3].any()
    assert not found.model[2].weight[:, 3].any()
    assert_same(other.model, found.model, 1e-5)


def test_a_network_that_is_zero_stays_zero() -> None:
    net, x = network("dense")
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    found = balance(net, batch=x)
    assert not any(p.any() for p in found.model.parameters())
    assert found.logit_error == 0


def test_a_linear_network_becomes_the_balanced_factors_of_its_product() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(), nn.Linear(4, 3)).double()
    mixed = copy.deepcopy(net)
    G = torch.eye(4, dtype=torch.float64) + 0.4 * gaussian(4, 4, seed=2)
    with torch.no_grad():
        mixed[0].weight.copy_(G @ net[0].weight)
        mixed[0].bias.copy_(G @ net[0].bias)
        mixed[2].weight.copy_(net[2].weight @ G.inverse())
    found, other = (balance(one, batch=gaussian(6, 5)).model for one in (net, mixed))
    assert balance(net).fixed == ("constant part of 0.bias, moved into 2.bias", "basis of the 4 dimensions after 0")
    A, B = found[0].weight, found[2].weight
    torch.testing.assert_close(A @ A.mT, B.mT @ B)
    torch.testing.assert_close(torch.linalg.svdvals(B), torch.linalg.svdvals(net[2].weight @ net[0].weight).sqrt())
    assert not found[0].bias.any()
    torch.testing.assert_close(found[2].bias, net[2].bias + net[2].weight @ net[0].bias)
    for a, b in zip(found.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(torch.linalg.norm(a), torch.linalg.norm(b))
    assert_same(balance(found).model, found, 1e-12)


def test_a_constant_behind_a_factor_is_unknown() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x) / 2)

    net = Halved()
    assert balance(net).unknown == ("one.bias: may move into two.bias past a factor",)
    net.two.bias = None
    assert balance(net).unknown == ()


def test_frozen_weights_take_no_part() -> None:
    net, x = network("dense")
    net[0].weight.requires_grad_(False)
    found = balance(net, batch=x)
    assert found.fixed == ("scale of each of the 32 neurons of 2",)
    assert torch.equal(found.model[0].weight, net[0].weight)
    assert found.unknown == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_with_few_digits_are_refused_with_the_remedy(dtype: torch.dtype) -> None:
    net, _ = network("dense")
    with pytest.raises(ProbeError, match=r"0\.weight is torch\.b?float16.*copy\.deepcopy\(model\)\.float\(\)"):
        balance(net.to(dtype))
    assert balance(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).to(dtype)).unknown == ()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    net, _ = network("dense")
    with torch.no_grad():
        net[2].weight[0, 0] = value
    with pytest.raises(ProbeError, match="not finite"):
        balance(net)


def test_outputs_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network("dense")

    def wrong(known: object, weights: dict[str, Tensor]) -> None:
        weights["0.weight"] *= 1.001

    monkeypatch.setattr("lossscope.probes.gauge.balance.least_norm", wrong)
    with pytest.raises(ProbeError, match="differs from the given one by"):
        balance(net, batch=x)
    assert balance(net).fixed


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ProbeError, match="the batch is empty"):
        balance(network("dense")[0], batch=())


def test_weights_without_values_are_refused() -> None:
    with pytest.raises(ProbeError, match="no values yet"):
        balance(nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 2)))
    with pytest.raises(ProbeError, match="no values yet"):
        balance(nn.Linear(3, 2, device="meta"))
