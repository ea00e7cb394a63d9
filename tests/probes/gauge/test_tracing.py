"""What is known of the symmetries of networks, and what is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.landscape.training.workloads import digits_conv
from lossscope.probes.gauge.balance import balance
from lossscope.probes.gauge.tracing import symmetries_of
from zoo.table import MEMBERS


class Own(nn.Module):
    """Two linear layers with a function of the hidden features between them."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function
        self.gain, self.act = nn.Parameter(torch.ones(4)), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self, self.first(x))) * self.gain.detach().sum()


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 4))


SMOOTH = [nn.Tanh(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.ELU(), nn.ReLU6(), nn.Softmax(-1), nn.Softplus()]


@pytest.mark.parametrize("layer", SMOOTH, ids=lambda layer: type(layer).__name__)
def test_features_of_a_smooth_layer_have_nothing_to_fix(layer: nn.Module) -> None:
    found = symmetries_of(chain(layer))
    assert (found.known, found.unknown) == ((), ())


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LeakyReLU(0.2), nn.PReLU(), nn.RReLU()], ids=str)
def test_features_of_a_positively_homogeneous_layer_have_a_scale(layer: nn.Module) -> None:
    found = symmetries_of(chain(layer, nn.Dropout(), nn.Identity()))
    assert [one.words for one in found.known] == ["scale of each of the 4 neurons of 0"]
    assert found.unknown == ()


class Added(nn.Module):
    """A layer with a skip connection."""

    def __init__(self, *, relu: bool = True) -> None:
        super().__init__()
        self.inner, self.relu = nn.Linear(4, 4), relu

    def forward(self, x: Tensor) -> Tensor:
        return x + (F.relu(self.inner(x)) if self.relu else self.inner(x))


def tied() -> nn.Module:
    net = chain(nn.ReLU())
    net[2].weight = net[0].weight
    return net


def repeated() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked() -> nn.Module:
    net = chain(nn.ReLU())
    net[1].register_forward_hook(lambda module, inputs, output: output**2)
    return net


def hooked_outside() -> nn.Module:
    net = chain(nn.ReLU())
    net.register_forward_hook(lambda module, inputs, output: output**2)
    return net


def replaced() -> nn.Module:
    net = chain(nn.ReLU())
    net[1].forward = lambda x: x**2  # type: ignore[method-assign]
    return net


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


class Frames(nn.Module):
    """Frames of a film through a convolution, put side by side afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 2), nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        size = x.size(0)
        return self.head(F.relu(self.conv(x.flatten(0, 1))).view(size, -1))


class Scaled(nn.Module):
    """Features that are added at different scales, as embeddings often are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.second = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(2 * self.first(x) + self.other(x)))


class Optional(nn.Module):
    """A layer whose activation depends on an argument, and one that a flag leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, gate: Tensor | None = None, *, short: bool = False) -> Tensor:
        x = torch.tanh(self.first(x)) if gate is None else F.relu(self.first(x))
        return x if short else self.second(x)


def constant_bias() -> nn.Module:
    net = chain(nn.ReLU())
    del net[0].bias
    net[0].register_buffer("bias", torch.ones(4))
    return net


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]


def parametrized_attention() -> nn.Module:
    net = Attending()
    nn.utils.parametrizations.weight_norm(net.attention.out_proj)
    return net


UNKNOWN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "sum with the data": (Added, "inner: its features go into add"),
    "sum of two axes": (lambda: Own(lambda m, x: F.relu(x) + m.gain[:, None]), "gain: used by getitem"),
    "linear skip connection": (
        lambda: nn.Sequential(nn.Linear(4, 4), Added(relu=False), nn.Linear(4, 4)),
        "0 + 1.inner: 1.inner.weight reads and writes it",
    ),
    "tied weights": (tied, "0: 0.weight is used more than once"),
    "layer applied twice": (repeated, "0: 0.weight is used more than once"),
    "hook": (hooked, "0: its features go into 1, which has hooks"),
    "hook of the network": (hooked_outside, "the network: its forward pass has hooks"),
    "forward of an instance": (replaced, "0: its features go into 1, which has hooks"),
    "squared ReLU": (lambda: Own(lambda m, x: F.relu(x).square()), "first: its features go into square"),
    "power": (lambda: Own(lambda m, x: F.relu(x) ** 2), "first: its features go into pow"),
    "gate": (lambda: Own(lambda m, x: x * torch.sigmoid(x)), "first: its features go into mul"),
    "added number": (lambda: Own(lambda m, x: F.relu(x) + 1), "first: its features go into add"),
    "parameter as a factor": (lambda: Own(lambda m, x: F.relu(x) * m.gain), "gain: used by mul"),
    "detached": (lambda: Own(lambda m, x: F.relu(x.detach())), "first: its features go into detach"),
    "concatenation": (lambda: Own(lambda m, x: torch.cat([x[:2], x[2:]])), "first: its features go into getitem"),
    "mean over features": (lambda: Own(lambda m, x: x - x.mean(-1)), "first: its features go into mean"),
    "other view": (lambda: Own(lambda m, x: F.relu(x).view(-1, 4)), "first: its features go into view"),
    "group norm": (digits_conv, "0: 1 (GroupNorm) ignores its scale but for eps"),
    "recurrent layer": (lambda: nn.LSTM(4, 3), "used"),
    "branch": (Branching, "the network: torch.fx cannot trace it"),
    "linear layer on another axis": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Linear(4, 2)),
        "0: 2 does not read its 4 features along one axis",
    ),
    "slope one": (lambda: chain(nn.LeakyReLU(1.0)), "0: its features go into 1 (LeakyReLU)"),
    "layer on a parameter": (
        lambda: Own(lambda m, x: m.first(m.gain) + x),
        "first.weight, first.bias, gain: used by first",
    ),
    "function of two parameters": (
        lambda: Own(lambda m, x: x + F.linear(m.second.weight, m.gain)),
        "second.weight, gain: used by linear",
    ),
    "module on a parameter": (
        lambda: Own(lambda m, x: F.linear(x, m.act(m.first.weight))),
        "first.weight: used by act",
    ),
    "pooling over features": (lambda: chain(nn.ReLU(), nn.MaxPool1d(3, 1, 1)), "0: its features go into 2 (MaxPool1d)"),
    "pooling over channels": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv1d(4, 4, 1)),
        "0: its features go into 2 (MaxPool2d)",
    ),
    "constant as a buffer": (constant_bias, "0.weight: used by 0, which has buffers"),
    "factor before a sum": (Scaled, "first.bias and other.bias: a constant vector may move between them past a factor"),
    "argument by name": (lambda: Own(lambda m, x: F.relu(x).div(other=2)), "first: its features go into div"),
    "view of frames": (Frames, "conv: its features go into view"),
    "batch norm twice": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)),
        "2.weight, 2.bias: used by 2 (BatchNorm1d)",
    ),
    "divisor of an average": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 1), nn.AvgPool2d(2, divisor_override=3), nn.Flatten(), nn.Linear(16, 4)),
        "0.bias: may move into 3.bias past a factor",
    ),
    "argument with a default": (Optional, "it is another one where gate is given to its forward pass"),
    "parametrized attention": (
        parametrized_attention,
        "attention layer with a mask of features, or with keys or weights",
    ),
    "unused parameter": (lambda: Own(lambda m, x: F.relu(x)), "gain: used by detach"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_listed(name: str) -> None:
    build, words = UNKNOWN[name]
    found = symmetries_of(build())
    assert any(words in one for one in found.unknown), found


INPUTS = {
    "view of frames": (3, 2, 1, 4, 4),
    "batch norm twice": (6, 4),
    "divisor of an average": (3, 1, 4, 4),
    "pooling over features": (3, 2, 4),
    "pooling over channels": (3, 4, 5),
    "constant as a buffer": (6, 4),
    "factor before a sum": (6, 4),
    "argument with a default": (6, 4),
}


@pytest.mark.parametrize("name", INPUTS)
def test_what_is_not_known_stays_the_same_function(name: str) -> None:
    net, x = UNKNOWN[name][0]().double(), gaussian(*INPUTS[name])
    for _ in range(3):
        net.train()(x)
    assert balance(net, batch=x).logit_error < 1e-13


class Plain(nn.Module):
    """A network that asks its weights for their dtype, and gives features back if a flag says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        x = F.relu(self.first(x.to(self.first.weight.dtype)))
        return x if features else self.second(x)


def test_flags_keep_their_defaults_and_dtypes_of_weights_are_no_use_of_them() -> None:
    assert balance(Plain()).fixed == ("scale of each of the 4 neurons of first",)
    assert balance(Plain()).unknown == ()
    given = symmetries_of(Plain(), ["features"])
    assert "torch.fx cannot trace it" in given.unknown[0]
    assert balance(Optional(), batch={"x": torch.ones(2, 4), "gate": torch.ones(1)}).fixed


def test_frozen_layers_have_no_symmetry_that_could_be_unknown() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Hardshrink(), nn.Flatten(), nn.Linear(8, 3))
    assert symmetries_of(net).unknown
    net[:3].requires_grad_(False)
    assert symmetries_of(net).unknown == ()


def test_layers_without_neurons_have_no_symmetry() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about empty weights
        nets = [nn.Sequential(nn.Linear(4, 0), *between, nn.Linear(0, 3)) for between in ((), (nn.ReLU(),))]
    assert [balance(net, batch=torch.ones(2, 4)).fixed for net in nets] == [(), ()]


def test_known_layers_are_fixed_beside_unknown_ones() -> None:
    net = nn.Sequential(chain(nn.ReLU()), Own(lambda m, x: x * torch.sigmoid(x)))
    found = balance(net, batch=torch.ones(2, 4))
    assert "scale of each of the 4 neurons of 0.0" in found.fixed
    assert found.unknown


def test_a_trace_leaves_the_network_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.calls, self.kept = nn.Linear(4, 4), 0, []

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.kept.append(x)
            self.last = self.layer(x)
            return self.last

    net = Counting()
    symmetries_of(net)
    assert (net.calls, net.kept, net.training) == (0, [], True)
    assert not hasattr(net, "last")


# members of the zoo with layers whose symmetries are not known; all others are chains with smooth layers, or with ReLU
NOT_KNOWN = {
    *("weight_norm", "weight_norm_legacy", "gpt", "gpt_11m", "lstm", "gru", "lora", "graphs", "odd_shapes", "encoder"),
    *("gradient_penalty", "group_norm", "transposed", "pooled", "rms_norm", "experts"),
    *("router", "fourier", "solve", "sorted", "custom_right", "custom_once", "grid_sample", "twice"),
    *("orthogonal", "spectral_norm", "data_parallel", "packed", "batch_norm_without_statistics", "masked_attention"),
    *("forces", "tied_by_list", "compiled"),
}
FIXED = {"inplace", "resnet", "resnet_frozen"}
SLOW = {"gpt_11m", "compiled", "checkpointed"}  # large, or they load torch.compile


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MEMBERS]
)
def test_a_member_of_the_zoo_is_known_or_lists_what_is_not(name: str) -> None:
    parts = MEMBERS[name].build()
    found = balance(parts.model)
    assert bool(found.unknown) == (name in NOT_KNOWN), (found.fixed, found.unknown)
    assert bool(found.fixed) == (name in FIXED)
