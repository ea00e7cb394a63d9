from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from lossscope.landscape.measures.pyhessian_engine import pyhessian_spectrum
from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.isolation import random_modules
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.invariant import adaptive_trace, log_fisher_rao


class Everything(nn.Module):
    """A network with batch norm, dropout, attention, tied weights, a frozen parameter and an updated buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6, bias=False)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = self.norm(self.tied(torch.tanh(self.embed(x)))) * self.frozen
        heads = h.reshape(1, 2, -1, 3)
        h = F.scaled_dot_product_attention(heads, heads, heads).reshape(-1, 6)
        return self.head(self.dropout(h))


def net() -> Everything:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Everything()
    model.head.bias.grad = torch.ones(3)
    model.dropout.eval()  # a mixed state: the net trains, its dropout does not
    return model


def data() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (8, 4)]


def moved_evaluation(objective: Objective) -> None:
    with objective.at(objective.parameters() + 0.1):
        objective.value()


def failed_evaluation(objective: Objective) -> None:
    with (
        pytest.raises(ProbeError, match=r"not finite|loss is nan"),
        objective.at(objective.parameters() * float("nan")),
    ):
        measure_spectrum(hessian(objective))


PROBES: dict[str, Callable[[Objective], Any]] = {
    "value": Objective.value,
    "gradient": Objective.gradient,
    "at": moved_evaluation,
    "failure": failed_evaluation,
    "product": lambda o: hessian(o) @ torch.ones(o.size),
    "measure_spectrum": lambda o: measure_spectrum(hessian(o), top=2, max_products=40),
    "pyhessian": lambda o: pyhessian_spectrum(
        o, hessian(o), top=2, rel=0.01, max_products=12, quantities=("top", "trace"), seed=0
    ),
    "directional_sharpness": lambda o: directional_sharpness(o, torch.ones(o.size), at=o.parameters() + 0.1),
    "adaptive_trace": lambda o: adaptive_trace(o, max_products=8),
    "log_fisher_rao": log_fisher_rao,
}


def state(model: nn.Module) -> dict[str, Any]:
    """Return all state that a probe must not change: the bytes, and the objects themselves."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {
        "objects": {name: id(t) for name, t in tensors.items()} | {name: id(g) for name, g in grads.items()},
        "bytes": {name: t.detach().clone() for name, t in tensors.items()},
        "grads": {name: None if g is None else g.clone() for name, g in grads.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "switches": (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()),
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return left == right


@pytest.mark.parametrize("mode", ["eval", "frozen", "train"])
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_leaves_the_model_and_the_random_state_bit_for_bit(probe: str, mode: Any) -> None:
    model = net()
    if mode != "eval":
        model.dropout.p = 0.0  # with dropout the objective would be refused
    objective = Objective(model, CrossEntropy(), data(), mode=mode)
    fired: list[Tensor] = []
    model.head.weight.register_hook(fired.append)
    before = state(model)
    PROBES[probe](objective)
    after = state(model)
    for key in before:
        assert same(before[key], after[key]), key
    assert not fired  # hooks on the parameters belong to training


def test_probes_work_where_gradients_are_off_and_leave_them_off() -> None:
    objective = Objective(net(), CrossEntropy(), data())
    expected = objective.gradient()
    with torch.no_grad():
        assert torch.equal(objective.gradient(), expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        found = objective.gradient()
        assert torch.is_inference_mode_enabled()
    assert torch.equal(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(objective.gradient(), expected)


def test_a_backward_pass_in_waiting_does_not_notice_a_probe() -> None:
    model = net().eval()
    objective = Objective(model, CrossEntropy(), data())
    loss = CrossEntropy()(model, data()[0])
    moved_evaluation(objective)
    model.zero_grad()
    loss.backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm"])
def test_what_the_hooks_of_older_norms_leave_in_a_module_is_what_was_there(wrap: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch that they are old
        model = nn.Sequential(getattr(nn.utils, wrap)(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 3))
        model(data()[0][0])
        weight, value = model[0].weight, model[0].weight.detach().clone()
        objective = Objective(model, CrossEntropy(), data())
        with objective.at(objective.parameters() + 1):
            hessian(objective) @ objective.parameters()
    assert model[0].weight is weight
    assert torch.equal(weight, value)


def test_two_threads_that_evaluate_at_once_leave_every_switch_as_it_was() -> None:
    def switches() -> list[Any]:
        return [
            nn.Module.get_parameter,
            CheckpointFunction.apply,
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_rng_state().tolist(),
        ]

    def second() -> None:
        with Objective(net(), CrossEntropy(), data()).evaluating():
            inside.set()
            first_left.wait(10)

    before, inside, first_left = switches(), Event(), Event()
    thread = Thread(target=second)
    with Objective(net(), CrossEntropy(), data()).evaluating():
        thread.start()
        inside.wait(0.2)
    first_left.set()
    thread.join(10)
    assert inside.is_set()
    assert switches() == before


def test_only_modules_that_draw_in_their_mode_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.RReLU())
    assert random_modules(model) == ["1 (Dropout)", "2 (RReLU)"]
    assert random_modules(model.eval()) == []


def test_a_module_that_is_registered_twice_keeps_its_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    model.again = model[2]
    before = dict(model.named_parameters())
    objective = Objective(
        model, lambda m, x: F.cross_entropy(m[2](m[1](m[0](x))), torch.zeros(4, dtype=int)), [torch.randn(4, 3)]
    )
    objective.gradient()
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert model.again.weight is model[2].weight
    assert isinstance(model[2].weight, nn.Parameter)
