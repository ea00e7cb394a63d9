"""Attention and skip connections: one balanced point for every copy that a symmetry of the network makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.training.modular_addition import ModularTransformer, modular_addition
from lossscope.landscape.training.workloads import built
from lossscope.probes import CrossEntropy, Objective, ProbeError, hessian
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.balancing import random_scaling
from lossscope.probes.gauge.copying import changed_copy, copied
from lossscope.probes.gauge.rescale import rescaled
from lossscope.probes.gauge.symmetry import Mixing, Scaling, Shift, Slot, Symmetry, Weights
from lossscope.probes.gauge.tracing import symmetries_of


class Block(nn.Module):
    """Transformer block without normalization, so that all of its symmetries are known."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, bias=bias, batch_first=True)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x)[0]
        return x + self.down(F.relu(self.up(x)))


class Transformer(nn.Module):
    """Embedding, positions, one block, and a head without bias where the block has none."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(5, 4), nn.Parameter(torch.randn(3, 4))
        self.block, self.head = Block(4, bias=bias), nn.Linear(4, 5, bias=bias)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.flatten(self.head(self.block(self.embedding(ids) + self.places)), 1)


class Crossed(nn.Module):
    """Attention of one sequence to another."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = self.attention(F.relu(self.one(x)), self.two(x), self.two(x))
        return self.head(torch.flatten(found[0], 1))


class Residual(nn.Module):
    """Residual blocks of convolutions with batch norm, with and without a layer on the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2))
        self.two = nn.Sequential(nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.BatchNorm2d(3))
        self.short, self.head = nn.Conv2d(2, 3, 2, stride=2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(torch.add(x, self.one(x)))
        x = F.relu(self.two(x) + self.short(x))
        return self.head(x.mean((2, 3)))


def modular() -> ModularTransformer:
    return ModularTransformer(5, width=4, heads=2, hidden=5)


IDS = torch.randint(0, 5, (12, 3), generator=torch.Generator().manual_seed(1))
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "transformer": (lambda: Transformer(bias=True), IDS),
    "transformer without biases": (lambda: Transformer(bias=False), IDS),
    "modular addition": (modular, modular_addition(5)[0]),
    "residual": (Residual, gaussian(8, 1, 4, 4)),
    "linear": (lambda: nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))), gaussian(12, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)), IDS),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    build, x = NETWORKS[name]
    net = built(build, 3).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter += 0.3 * gaussian(*parameter.shape, seed=index)
    return net, x


def moved(net: nn.Module, symmetries: Sequence[Symmetry], seed: int) -> nn.Module:
    """Return a copy that random elements of the symmetries have changed: any basis, scale and constant."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def change(weights: Weights) -> None:
        for one in symmetries:
            if isinstance(one, Scaling):
                random_scaling([one], weights, generator)
            elif isinstance(one, Mixing):
                G = torch.eye(one.size, dtype=torch.float64) + 0.5 * draw(one.size, one.size)
                for slots, matrix in ((one.writes, G), (one.reads, G.inverse().mT)):
                    for slot in slots:
                        slot.assign(weights, matrix @ slot.rows(weights))
            else:
                constant = draw(len(one.writes[0].rows(weights)), 1)
                for slot, sign in zip(one.writes, (1, -1), strict=True):
                    slot.assign(weights, slot.rows(weights) + sign * constant)

    other = copied(net)
    changed_copy(other, symmetries, change)
    return other


def numbers(net: nn.Module, x: Tensor) -> list[float]:
    """Return largest eigenvalue and trace of the Hessian."""
    operator = hessian(Objective(net, CrossEntropy(), [(x, torch.arange(len(x)) % 3)]))
    H = operator @ torch.eye(operator.size, dtype=torch.float64)
    return [float(torch.linalg.eigvalsh(H)[-1]), float(H.trace())]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_copy_of_the_same_function_has_one_balanced_point(name: str) -> None:
    net, x = network(name)
    found, symmetries = balance(net, batch=x), symmetries_of(net)
    assert (bool(found.unknown), found.logit_error < 1e-11) == (name == "modular addition", True)
    other, gains = copied(net), any("gains" in fold.words for fold in symmetries.folds)
    for fold in symmetries.folds if not gains else ():
        fold.apply(other)  # constants, without which the bases of values are free
    other = moved(other, [one for one in symmetries.known if not (gains and isinstance(one, Scaling))], 5)
    torch.testing.assert_close(other(x), net(x), rtol=1e-9, atol=1e-9)
    wanted = numbers(found.model, x)
    assert numbers(balance(other, batch=x).model, x) == pytest.approx(wanted, rel=1e-5)
    if not gains:
        assert numbers(other, x)[0] != pytest.approx(numbers(net, x)[0], rel=0.05)


def test_a_rescaled_residual_network_with_batch_norm_has_the_same_balanced_point() -> None:
    net, x = network("residual")
    other = rescaled(net, 4)
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert numbers(balance(other).model, x) == pytest.approx(numbers(balance(net).model, x), rel=1e-6)
    assert numbers(other, x)[0] != pytest.approx(numbers(net, x)[0], rel=0.2)
    assert "scale of each of the 2 neurons of stem.0 + one.0" in balance(net).fixed


@pytest.mark.parametrize("name", ["transformer", "linear", "embedding"])
def test_constants_moved_by_hand_give_the_same_balanced_point(name: str) -> None:
    net, x = network(name)
    other = copied(net)
    with torch.no_grad():
        if name == "transformer":
            attention, c = other.block.attention, gaussian(4, seed=9)
            attention.in_proj_bias[4:8] += gaussian(4, seed=8)  # a bias of keys, which has no effect
            attention.in_proj_bias[8:] += c
            attention.out_proj.bias -= attention.out_proj.weight @ c
            other.places += c
            other.embedding.weight -= 2 * c
            for layer, bias in ((attention.in_proj_weight, attention.in_proj_bias), (other.block.up.weight, None)):
                (other.block.up.bias if bias is None else bias).add_(layer @ c)
            other.head.bias += other.head.weight @ c
        else:
            first, last = other[0], other[1 if name == "linear" else 2]
            c = gaussian(first.weight.shape[1] if name == "embedding" else 3, seed=9)
            (first.weight if name == "embedding" else first.bias).add_(c)
            last.bias -= last.weight @ (c.repeat(3) if name == "embedding" else c)
    torch.testing.assert_close(other(x), net(x), rtol=1e-10, atol=1e-10)
    assert numbers(balance(other).model, x) == pytest.approx(numbers(balance(net).model, x), rel=1e-6)


def test_query_and_key_become_the_balanced_factors_of_their_product() -> None:
    net, x = network("transformer")
    found = balance(net, batch=x)
    W, b = found.model.block.attention.in_proj_weight, found.model.block.attention.in_proj_bias
    Q, K, V = W.view(3, 2, 2, 4).unbind()
    O = found.model.block.attention.out_proj.weight.view(4, 2, 2)
    for head in range(2):
        query = torch.cat([Q[head], b[:4].view(2, 2)[head][:, None]], 1)
        torch.testing.assert_close(query @ query.mT, K[head] @ K[head].mT, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(V[head] @ V[head].mT, O[:, head].mT @ O[:, head], rtol=1e-9, atol=1e-9)
    assert not b[4:].any()
    assert not found.model.block.attention.out_proj.bias.any()  # moved on into the biases behind it
    assert "basis of the 2 dimensions after the queries of block.attention, head 1" in found.fixed


def test_features_that_no_layer_reads_alone_share_one_constant() -> None:
    net, x = network("transformer without biases")
    assert "constant vector between embedding.weight and places" in balance(net).fixed
    found = balance(net, batch=x).model
    torch.testing.assert_close(5 * found.embedding.weight.mean(0), 3 * found.places.mean(0), rtol=1e-9, atol=1e-9)


def test_attention_to_another_sequence_is_known() -> None:
    net = built(Crossed, 1).double()
    net.two = nn.Identity()
    x = gaussian(5, 3, 4)
    found = balance(net, batch=x)
    assert found.unknown == ()
    assert "scale of each of the 4 neurons of one" in found.fixed
    assert balance(built(Crossed, 1)).unknown == (
        "two: two.weight is used more than once",
        "two: two.bias is used more than once",
    )


@pytest.mark.parametrize("kind", ["bias_kv", "zero", "width", "shared"])
def test_other_attention_is_unknown(kind: str) -> None:
    net = Transformer(bias=True)
    settings = {"bias_kv": {"add_bias_kv": True}, "zero": {"add_zero_attn": True}, "width": {"kdim": 4, "vdim": 3}}
    if kind == "shared":
        net.block.down.weight = nn.Parameter(net.block.down.weight.detach())
        net.head.weight = net.block.attention.out_proj.weight
        net.head.bias = None
    else:
        net.block.attention = nn.MultiheadAttention(4, 2, batch_first=True, **settings[kind])
    assert any("attention" in one for one in balance(net).unknown)


def test_frozen_weights_of_attention_take_no_part() -> None:
    net, x = network("transformer")
    net.block.attention.requires_grad_(False)
    found = balance(net, batch=x)
    assert not any("head" in one for one in found.fixed if one.startswith("basis"))
    assert torch.equal(found.model.block.attention.in_proj_weight, net.block.attention.in_proj_weight)


class Declaring(nn.Module):
    """A gate, whose symmetry no trace shows."""

    def __init__(self, name: str = "b.weight") -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False), nn.Linear(3, 4)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * torch.sigmoid(self.c(x)))

    def weight_symmetries(self) -> list[Symmetry | str]:
        return [Scaling("a", 4, (Slot("a.weight", (4, 3), (0, 1)),), (Slot(self.name, (-1, 4), (1, 0)),))]


def test_a_network_can_declare_its_symmetries() -> None:
    net, x = built(Declaring, 0), gaussian(5, 3, dtype=torch.float32)
    found = balance(net, batch=x)
    assert (found.fixed, found.unknown) == (("scale of each of the 4 neurons of a",), ())
    torch.testing.assert_close(found.model.a.weight.norm(dim=1), found.model.b.weight.norm(dim=0))
    net.b.requires_grad_(False)
    assert balance(net).fixed == ()


def test_a_wrong_declaration_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"Declaring\.weight_symmetries\(\) names 'd\.weight', which is no parameter"):
        balance(Declaring("d.weight"))
    with pytest.raises(ProbeError, match="differs from the given one by"):
        balance(built(lambda: Declaring("c.weight"), 0), batch=gaussian(5, 3, dtype=torch.float32))


WRONG: dict[str, tuple[object, str]] = {
    "shape": (
        [Scaling("a", 4, (Slot("a.weight", (5, 3), (0, 1)),), (Slot("b.weight", (2, 4), (1, 0)),))],
        "of shape .4, 3.",
    ),
    "size": (
        [Scaling("a", 3, (Slot("a.weight", (4, 3), (0, 1)),), (Slot("b.weight", (2, 4), (1, 0)),))],
        "has 4 rows there",
    ),
    "side": ([Scaling("a", 4, (Slot("a.weight", (4, 3), (0, 1)),), ())], "without writes or reads"),
    "type": (None, "must return a list of Scaling, Mixing, Shift and text, got None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_declaration_that_does_not_fit_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared, words = WRONG[name]
    monkeypatch.setattr(Declaring, "weight_symmetries", lambda self: declared)
    with pytest.raises(ProbeError, match=rf"Declaring\.weight_symmetries\(\) .*{words}"):
        balance(Declaring())


def test_shifts_leave_scales_alone() -> None:
    shift = Shift("a and b", (Slot("a", (2, 1), (0, 1)), Slot("b", (2, 3), (0, 1))))
    weights = {"a": torch.tensor([[4.0], [0.0]]).double(), "b": torch.zeros(2, 3).double()}
    random_scaling([shift], weights, torch.Generator().manual_seed(0))
    assert float(weights["a"].sum()) == 4.0
