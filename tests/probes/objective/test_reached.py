"""Networks that a loss reaches beside its model are as they were after a measurement, and in each evaluation."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import gaussian
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.objective.reached import reached
from lossscope.probes.operators.hessian import hessian

X = gaussian(12, 4)


def seeded(*parts: Callable[[], nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(*(part() for part in parts)).double()


def critic() -> nn.Sequential:
    return seeded(lambda: nn.Linear(3, 6), lambda: nn.BatchNorm1d(6), nn.Tanh, lambda: nn.Linear(6, 1))


GLOBAL = critic()


def through_a_global(model: nn.Module, x: Tensor) -> Tensor:
    return F.softplus(-GLOBAL(model(x))).mean()


def helped(model: nn.Module, x: Tensor) -> Tensor:
    """Return a loss that calls another function, which reaches the network."""
    return through_a_global(model, x)


class Loss:
    """A loss that holds a network and counts its calls."""

    def __init__(self, net: nn.Module) -> None:
        self.nets, self.calls, self.center, self.seen = {"critic": [net]}, 0, torch.zeros(1).double(), []

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        self.calls += 1
        self.center.add_(1)
        self.seen.append(self.calls)
        return F.softplus(-self.nets["critic"][0](model(x))).mean() + 0.1 * self.calls + self.center.sum()

    def method(self, model: nn.Module, x: Tensor) -> Tensor:
        return self(model, x)


class Slotted:
    """A loss that holds a network in a slot."""

    __slots__ = ("__net", "unset")

    def __init__(self, net: nn.Module) -> None:
        self.__net = net

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        return F.softplus(-self.__net(model(x))).mean()


def imported(net: nn.Module) -> Any:
    module = types.ModuleType("module_of_a_user")
    module.critic = net
    sys.modules[module.__name__] = module

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        import module_of_a_user

        return F.softplus(-module_of_a_user.critic(model(x))).mean()

    return loss


def imported_from(net: nn.Module) -> Any:
    imported(net)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        from module_of_a_user import critic as other

        return F.softplus(-other(model(x))).mean()

    return loss


def closure(net: nn.Module) -> Any:
    return lambda model, x: F.softplus(-net(model(x))).mean()


def default(net: nn.Module) -> Any:
    def loss(model: nn.Module, x: Tensor, *, other: nn.Module = net) -> Tensor:
        return F.softplus(-other(model(x))).mean()

    return loss


def third(net: nn.Module, model: nn.Module, x: Tensor) -> Tensor:
    return F.softplus(-net(model(x))).mean()


WAYS: dict[str, Callable[[nn.Module], Any]] = {
    "closure": closure,
    "default": default,
    "partial": lambda net: partial(third, net),
    "partial by name": lambda net: partial(lambda model, x, net: third(net, model, x), net=net),
    "attribute": Loss,
    "bound method": lambda net: Loss(net).method,
    "global": lambda net: through_a_global,
    "helper": lambda net: helped,
    "slot": Slotted,
    "import": imported,
    "import from": imported_from,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_second_network_keeps_its_statistics_mode_and_gradients(way: str) -> None:
    net = GLOBAL if way in ("global", "helper") else critic()
    net[0].weight.grad, net[2].training = torch.ones_like(net[0].weight), False
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loss = WAYS[way](net)
    objective = Objective(seeded(lambda: nn.Linear(4, 3)), loss, [X[:8], X[8:]])
    assert objective.value() == objective.value()
    H = hessian(objective)
    torch.testing.assert_close(H @ torch.ones(15), hessian(objective, method="differences") @ torch.ones(15).double())
    assert H.method == "reverse"
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net] == [True, True, False, True]
    assert torch.equal(net[0].weight.grad, torch.ones_like(net[0].weight))
    assert net[3].weight.grad is None
    owner = getattr(loss, "__self__", loss)
    if isinstance(owner, Loss):
        assert (owner.calls, float(owner.center), owner.seen) == (0, 0.0, [])


def test_a_second_network_whose_state_moves_with_every_call_is_met_in_one_state() -> None:
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)).double()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objective = Objective(seeded(lambda: nn.Linear(4, 3)), closure(net), [X])
    assert objective.value() == objective.value()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_search_stops_at_libraries_and_finds_each_network_once() -> None:
    model, net = nn.Linear(4, 3), critic()
    whole = nn.ModuleDict({"model": model, "critic": net})
    found = reached(lambda m, x: net(m(x)).mean() + net[0].bias.sum() + F.mse_loss(x, x), model)
    assert found.modules == (net,)
    assert reached(lambda m, x: whole["critic"](m(x)).mean(), model).modules == (whole,)
    assert reached(F.cross_entropy, model).modules == ()


class Filling(nn.Module):
    """A network whose forward pass fills a buffer, a dictionary, a list and attributes, and counts."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Linear(4, 3).double()
        self.register_buffer("mean", None)
        self.cache: dict[str, Any] = {"inner": {}}
        self.calls, self.seen, self.moved = [0], [], torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.mean(0)
        if "mean" not in self.cache["inner"]:
            self.cache["inner"]["mean"] = x.mean(0)
        self.calls[0] += 1
        self.moved += 1
        self.seen.append(x)
        self.last = x
        self.register_buffer("late", x)
        return self.net(x - self.mean + self.cache["inner"]["mean"]) * (1 + 0.01 * self.calls[0] + self.moved[0])


def test_what_a_forward_pass_fills_is_empty_in_each_evaluation_and_afterwards() -> None:
    model = Filling()
    objective = Objective(model, lambda m, x: m(x).square().mean(), [X[:6], X[6:]])
    expected = [float(Filling()(x).square().mean().detach()) for x in (X[:6], X[6:])]
    assert objective.value() == pytest.approx(sum(expected) / 2, rel=1e-12)
    hessian(objective) @ torch.ones(15)
    assert (model.mean, model.cache, model.calls, model.seen) == (None, {"inner": {}}, [0], [])
    assert not model.moved.any()
    assert not hasattr(model, "last")
    assert not hasattr(model, "late")


class Drawing(nn.Module):
    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.net, self.generator = nn.Linear(4, 3).double(), generator

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.generator, torch.Generator):
            drawn = float(torch.rand(1, generator=self.generator))
        else:
            drawn = float(self.generator.random())
        return self.net(x) + (drawn if self.net.training else 0.0)


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (torch.Generator, lambda g: g.get_state().tolist()),
        (lambda: np.random.default_rng(0), lambda g: str(g.bit_generator.state)),
        (lambda: np.random.RandomState(0), lambda g: str(g.get_state())),
        (lambda: random.Random(0), lambda g: g.getstate()),
    ],
)
def test_generators_of_a_model_are_where_they_were(make: Any, state: Any) -> None:
    model = Drawing(make())
    before = state(model.generator)
    Objective(model, lambda m, x: m(x).square().mean(), [X]).value()
    assert state(model.generator) == before
    with pytest.raises(ProbeError, match="two evaluations of one loss"):
        Objective(model, lambda m, x: m(x).square().mean(), [X], mode="frozen").value()
    assert state(model.generator) == before


class OwnError(Exception):
    """An error of the user's loss."""


@pytest.mark.parametrize("error", [OwnError, KeyboardInterrupt])
def test_a_loss_that_raises_leaves_everything_too(error: type[BaseException]) -> None:
    net, model = critic(), Filling()
    model.net.weight.grad = torch.ones(3, 4).double()
    calls = []

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        calls.append(1)
        found = net(m(x)).mean() + torch.rand(1).sum() * 0 + np.random.rand() * 0 + random.random() * 0
        m.eval()
        for p in (*m.parameters(), *net.parameters()):
            p.requires_grad_(False)
        net.train(False)
        if len(calls) == 4:
            raise error
        for p in m.parameters():
            p.requires_grad_(True)
        return found

    before = {name: tensor.clone() for name, tensor in (*net.state_dict().items(), *model.state_dict().items())}
    states = torch.get_rng_state(), np.random.get_state()[2], random.getstate()
    with pytest.raises(error):
        Objective(model, loss, [X[:6], X[6:]], mode="frozen").gradient()
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in (*net.state_dict().items(), *model.state_dict().items())
    )
    assert all(p.requires_grad for p in (*model.parameters(), *net.parameters()))
    assert all(module.training for module in (*model.modules(), *net.modules()))
    assert torch.equal(model.net.weight.grad, torch.ones(3, 4))
    assert (model.mean, model.calls) == (None, [0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[2], random.getstate()) == states[1:]
    assert torch.is_grad_enabled()


class Recomputing(torch.autograd.Function):
    """A checkpoint as other packages have it: its backward pass runs another, through the real parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: nn.Module) -> Tensor:
        ctx.block = block
        ctx.save_for_backward(x)
        return block(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            torch.autograd.backward(ctx.block(x), slope)
        return x.grad, None


def test_a_backward_pass_that_writes_gradients_past_autograd_is_refused() -> None:
    model = seeded(lambda: nn.Linear(4, 3), lambda: nn.Linear(3, 3))
    objective = Objective(model, lambda m, x: Recomputing.apply(m[0](x), m[1]).square().mean(), [X])
    with pytest.raises(ProbeError, match=r"has written \.grad of a parameter \(1.weight\), past torch\.autograd\.grad"):
        objective.gradient()
    assert all(p.grad is None for p in model.parameters())


def test_sharded_parameters_are_refused() -> None:
    class FlatParameter(nn.Parameter):
        pass

    model = nn.Linear(4, 3)
    model.weight = FlatParameter(torch.ones(3, 4))
    with pytest.raises(ProbeError, match=r"must be whole on this process, got weight \(FlatParameter\)"):
        Objective(model, lambda m, x: m(x).mean(), [X.float()])
