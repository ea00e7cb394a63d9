"""Maps of the weights that keep the function, by hand: one balanced point, or a reason for which there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.training.workloads import built
from lossscope.probes import CrossEntropy, Objective, hessian
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.copying import copied
from lossscope.probes.gauge.rescale import rescaled

Function = Callable[[nn.Module, Tensor], Tensor]
V = torch.tensor([0.7, -0.4, 1.1, 0.3], dtype=torch.float64)


class Net(nn.Module):
    """Layers by name, and a function of them."""

    def __init__(self, function: Function, **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def made(function: Function, **layers: nn.Module | nn.Parameter) -> nn.Module:
    return disturbed(built(lambda: Net(function, **layers), 2))


def disturbed(net: nn.Module) -> nn.Module:
    """Return the network in float64 and eval mode, with biases and gains that are not 0 and 1."""
    net = net.double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter += 0.3 * gaussian(*parameter.shape, seed=index)
    return net


def residual(stem: int, width: int, outputs: int, *, relu: bool = False) -> nn.Module:
    """Return a network with one skip connection and a linear layer behind it."""

    def function(m: nn.Module, x: Tensor) -> Tensor:
        x = F.relu(m.a(x)) if relu else m.a(x)
        return m.h(x + m.d(F.relu(m.u(x))))

    layers = {"a": nn.Linear(stem, width), "u": nn.Linear(width, 6), "d": nn.Linear(6, width)}
    return made(function, **layers, h=nn.Linear(width, outputs))


def crossed() -> nn.Module:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        memory = m.b(x)
        return m.h(torch.flatten(F.relu(m.attention(m.a(x), memory, memory)[0]), 1))

    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    return made(function, a=nn.Linear(4, 4), b=nn.Linear(4, 4), attention=attention, h=nn.Linear(12, 3))


def twice(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.h(h + h + m.b(x))


def in_place(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    h.add_(m.b(x))
    return m.h(F.relu(h))


def shared(m: nn.Module, x: Tensor) -> Tensor:
    h = m.b(x)
    return m.h(F.relu(h + m.a(x))) + m.g(F.relu(h + m.c(x)))


def two_heads(m: nn.Module, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.h(h) + F.relu(m.g(h)) @ torch.ones(2, 3, dtype=x.dtype)


def four(**more: nn.Module | nn.Parameter) -> dict[str, nn.Module | nn.Parameter]:
    return {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4), "h": nn.Linear(4, 3), **more}


def moved(net: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    other = copied(net)
    with torch.no_grad():
        change(other)
    return other


def numbers(net: nn.Module, x: Tensor) -> list[float]:
    operator = hessian(Objective(net, CrossEntropy(), [(x, torch.arange(len(x)) % 3)]))
    H = operator @ torch.eye(operator.size, dtype=torch.float64)
    return [float(torch.linalg.eigvalsh(H)[-1]), float(H.trace())]


def add(bias: Tensor, values: Tensor) -> None:
    bias += values


def shift(source: str, target: str, *, sign: int = -1, times: int = 1) -> Callable[[nn.Module], None]:
    """Return a map that adds V to a bias and takes what a layer makes of it from the bias of that layer."""

    def change(m: nn.Module) -> None:
        add(m.get_submodule(source).bias, V[: len(m.get_submodule(source).bias)])
        layer = m.get_submodule(target)
        taps = layer.weight.flatten(2).sum(2) if layer.weight.ndim > 2 else layer.weight
        add(layer.bias, sign * times * taps @ V[: taps.shape[1]])

    return change


def exchange(m: nn.Module) -> None:
    add(m.a.bias, V)
    add(m.b.bias, -V)


def shift_attention(source: str, rows: slice) -> Callable[[nn.Module], None]:
    def change(m: nn.Module) -> None:
        add(getattr(m, source).bias, V)
        add(m.attention.in_proj_bias[rows], -m.attention.in_proj_weight[rows] @ V)

    return change


MAPS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object], tuple[int, ...]]] = {
    "bias behind a skip connection": (lambda: residual(4, 4, 5, relu=True), shift("d", "h"), (9, 4)),
    "bias between convolutions": (
        lambda: disturbed(
            nn.Sequential(nn.Conv2d(1, 2, 2), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
        ),
        shift("0", "1"),
        (9, 1, 4, 4),
    ),
    "bias of a grouped convolution": (
        lambda: disturbed(
            nn.Sequential(
                nn.Conv2d(1, 2, 2),
                nn.Conv2d(2, 2, 2, groups=2),
                nn.Conv2d(2, 3, 1),
                nn.Flatten(),
                nn.ReLU(),
                nn.Linear(12, 3),
            )
        ),
        shift("1", "2"),
        (9, 1, 4, 4),
    ),
    "bias before a largest value": (
        lambda: disturbed(nn.Sequential(nn.Conv2d(1, 2, 2), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 3))),
        shift("0", "3"),
        (9, 1, 4, 4),
    ),
    "bias that is added twice": (lambda: made(twice, **four()), shift("a", "h", times=2), (9, 4)),
    "bias of queries' source": (crossed, shift_attention("a", slice(0, 4)), (9, 3, 4)),
    "bias of values' source": (crossed, shift_attention("b", slice(4, 12)), (9, 3, 4)),
    "bias past a layer that has none": (
        lambda: made(lambda m, x: m.h(F.relu(m.a2(m.a(x)) + m.b(x))), **four(a2=nn.Linear(4, 4, bias=False))),
        lambda m: (add(m.a.bias, V), add(m.b.bias, -m.a2.weight @ V)),
        (9, 4),
    ),
    "sum in place": (lambda: made(in_place, **four()), exchange, (9, 4)),
}


@pytest.mark.parametrize("name", MAPS)
def test_constants_that_may_move_are_fixed(name: str) -> None:
    build, change, shape = MAPS[name]
    net, x = build(), gaussian(*shape)
    other, found = moved(net, change), balance(net, batch=x)
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert (found.unknown, found.logit_error < 1e-12) == ((), True)
    assert numbers(balance(other, batch=x).model, x) == pytest.approx(numbers(found.model, x), rel=1e-7)


def test_a_bias_moves_past_a_linear_bottleneck_with_batch_norm() -> None:
    layers = [
        nn.Linear(4, 2),
        nn.BatchNorm1d(2),
        nn.Linear(2, 4, bias=False),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Linear(4, 3),
    ]
    net, x = disturbed(built(lambda: nn.Sequential(*layers), 2)), gaussian(9, 4)
    for _ in range(3):
        net.train()(x)
    net.eval()

    def change(m: nn.Module) -> None:
        add(m[1].bias, V[:2])
        add(m[3].bias, -m[3].weight / (m[3].running_var + m[3].eps).sqrt() * (m[2].weight @ V[:2]))

    other, found = moved(net, change), balance(net, batch=x)
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert found.unknown == ()
    assert numbers(balance(other).model, x) == pytest.approx(numbers(found.model, x), rel=1e-7)
    again = balance(found.model, batch=x)
    assert again.unknown == ()
    assert numbers(again.model, x) == pytest.approx(numbers(found.model, x), rel=1e-9)


def hidden(layer: str, reader: str, *, rows: bool) -> Callable[[nn.Module], object]:
    """Return a map that changes what a layer writes, or reads, along a direction that has no effect."""

    def change(m: nn.Module) -> None:
        weight, other = getattr(m, layer).weight, getattr(m, reader)
        read = other.weight if rows else torch.cat([other.weight, other.bias[:, None]], 1).mT
        direction = torch.linalg.svd(read)[2][-1]
        free = gaussian(weight.shape[1 if rows else 0], seed=5)
        add(weight, torch.outer(direction, free) if rows else torch.outer(free, direction))

    return change


def into_heads(m: nn.Module) -> None:
    direction = torch.linalg.svd(m.g.weight)[2][-1]
    add(m.a.bias, direction)
    add(m.h.bias, -m.h.weight @ direction)


def in_groups(m: nn.Module) -> None:
    G = torch.block_diag(*(torch.eye(2) + 0.5 * gaussian(2, 2, seed=seed) for seed in (1, 2))).double()
    m[0].weight.copy_(torch.einsum("ij,jabc->iabc", G, m[0].weight))
    m[0].bias.copy_(G @ m[0].bias)
    for part in (slice(0, 2), slice(2, 4)):
        m[1].weight[part] = torch.einsum("ojab,ji->oiab", m[1].weight[part], G.inverse()[part, part])


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object], tuple[int, ...], str]] = {
    "summand that few outputs read": (
        lambda: residual(4, 4, 3),
        hidden("d", "h", rows=True),
        (9, 4),
        "d.weight: what h.weight cannot read of it has no effect",
    ),
    "the same behind ReLU": (
        lambda: residual(4, 4, 3, relu=True),
        hidden("d", "h", rows=True),
        (9, 4),
        "d.weight: what h.weight cannot read of it has no effect",
    ),
    "summand of few directions": (
        lambda: residual(2, 4, 5),
        hidden("u", "a", rows=False),
        (9, 2),
        "u.weight: what a.weight, a.bias cannot write for it has no effect",
    ),
    "layer without a bias beside one": (
        lambda: made(two_heads, a=nn.Linear(4, 4), h=nn.Linear(4, 3), g=nn.Linear(4, 2, bias=False)),
        into_heads,
        (9, 4),
        "a.bias: what no layer without a bias reads of it may move into h.bias",
    ),
    "three constants in two sums": (
        lambda: made(shared, **four(c=nn.Linear(4, 4), g=nn.Linear(4, 3))),
        lambda m: (add(m.a.bias, V), add(m.c.bias, V), add(m.b.bias, -V)),
        (9, 4),
        "constants may move from some of them into others",
    ),
    "basis within groups": (
        lambda: disturbed(
            nn.Sequential(nn.Conv2d(1, 4, 2), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        ),
        in_groups,
        (9, 1, 4, 4),
        "0: its basis may change within groups of 2 features",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_maps_that_no_symmetry_describes_are_listed(name: str) -> None:
    build, change, shape, words = UNKNOWN[name]
    net, x = build(), gaussian(*shape)
    other, found = moved(net, change), balance(net, batch=x)
    torch.testing.assert_close(other(x), net(x), rtol=1e-9, atol=1e-9)
    assert any(words in one for one in found.unknown), found.unknown
    assert numbers(balance(other).model, x) != pytest.approx(numbers(found.model, x), rel=1e-5)


def test_a_rescaled_head_of_attention_keeps_the_function() -> None:
    net, x = crossed(), gaussian(9, 3, 4)
    other = rescaled(net, 3)
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert numbers(balance(other).model, x) == pytest.approx(numbers(balance(net).model, x), rel=1e-7)


def test_values_keep_their_bias_where_the_output_has_a_frozen_one() -> None:
    net, x = crossed(), gaussian(9, 3, 4)
    net.attention.out_proj.bias.requires_grad_(False)
    found = balance(net, batch=x)
    assert found.logit_error < 1e-12
    assert found.model.attention.in_proj_bias[8:].any()
