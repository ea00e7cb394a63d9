from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.eigenvalues.measure import measure_spectrum
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators import cached_products, timing
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.objective_operator import ObjectiveOperator
from lossscope.probes.operators.timing import signature


class Machine:
    """A clock on which a gradient takes 10 seconds at first, then 3 with its graph and 2 without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        self.gradients: list[tuple[int, bool]] = []  # batch index, True if with its graph
        plain = Objective.slope

        def slope(objective: Objective, theta: Tensor, at: Any, *, graph: bool = False) -> Any:
            self.seconds += (3.0 if graph else 2.0) if self.gradients else 10.0
            self.gradients.append((at.index, graph))
            return plain(objective, theta, at, graph=graph)

        monkeypatch.setattr(Objective, "slope", slope)
        for module in (timing, cached_products):
            monkeypatch.setattr(module, "now", lambda _: self.seconds)
        monkeypatch.setattr(timing, "_LEAST", {})


@pytest.fixture(name="machine")
def a_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    return Machine(monkeypatch)


def objective(*rows: int, width: int = 5, act: type[nn.Module] = nn.Tanh, **how: Any) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, width), act(), nn.Linear(width, 3))
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 3, generator=generator), torch.arange(n) % 3) for n in rows or (6,)]
    return Objective(net, CrossEntropy(), batches, **how)


def multiplied(operator: ObjectiveOperator, times: int = 1) -> None:
    with operator.cached():
        for _ in range(times):
            operator @ torch.ones(operator.size)


def test_the_first_gradient_of_a_process_does_not_count(machine: Machine) -> None:
    H = hessian(objective())
    with H.cached():
        H @ torch.ones(H.size)
        assert H.gradient_seconds == 10.0  # the only one recorded so far
    assert H.gradient_seconds == 2.0
    assert machine.gradients == [(0, True), (0, False)]
    assert H.products == 1


def test_one_more_gradient_is_taken_once_in_a_process_for_each_signature(machine: Machine) -> None:
    H, again = hessian(objective()), hessian(objective())
    for _ in range(3):
        multiplied(H, 2)
    multiplied(again)
    assert machine.gradients.count((0, False)) == 1
    assert again.gradient_seconds == H.gradient_seconds == 2.0
    multiplied(hessian(objective(width=6)))
    multiplied(hessian(objective(7)))
    assert machine.gradients.count((0, False)) == 3


def test_all_matrices_of_an_objective_share_its_gradient(machine: Machine) -> None:
    multiplied(hessian(objective()))
    before = len(machine.gradients)
    G = gauss_newton(objective())
    multiplied(G)
    assert len(machine.gradients) == before
    assert G.gradient_seconds <= 2.0


def test_a_gradient_is_one_over_all_batches(machine: Machine) -> None:
    H = hessian(objective(6, 2))
    multiplied(H)
    assert H.gradient_seconds == 4.0
    assert machine.gradients == [(0, True), (1, True), (0, False), (1, False)]


def test_where_no_gradient_was_recorded_none_is_taken(machine: Machine) -> None:
    forward, idle = hessian(objective(), method="forward"), hessian(objective())
    multiplied(forward)
    multiplied(idle, 0)
    assert math.isnan(forward.gradient_seconds)
    assert math.isnan(idle.gradient_seconds)
    assert machine.gradients == []


def test_no_gradient_is_taken_after_an_error(machine: Machine) -> None:
    H = hessian(objective())

    def broken() -> None:
        with H.cached():
            H @ torch.ones(H.size)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert machine.gradients == [(0, True)]


def test_the_cost_of_a_measurement_is_counted_in_warm_gradients(machine: Machine) -> None:
    found = measure_spectrum(hessian(objective()), quantities=("top",), top=1)
    assert found.gradients == found.seconds / 2.0


def test_the_gradient_that_is_taken_touches_nothing(machine: Machine) -> None:
    of = objective()
    of.model[0].weight.grad = torch.ones(5, 3)
    before = {name: p.clone() for name, p in of.model.named_parameters()}
    random = torch.get_rng_state()
    multiplied(hessian(of))
    assert machine.gradients[-1] == (0, False)
    assert torch.equal(torch.get_rng_state(), random)
    for name, p in of.model.named_parameters():
        assert torch.equal(p, before[name])
        assert (p.grad is None) == (name != "0.weight")
    assert torch.equal(of.model[0].weight.grad, torch.ones(5, 3))


def test_the_signature_covers_all_that_the_cost_of_a_gradient_depends_on() -> None:
    base = signature(objective())
    assert signature(objective()) == base
    frozen = objective()
    frozen.model[0].bias.requires_grad_(False)
    others: list[Callable[[], Any]] = [
        lambda: signature(objective(width=9)),
        lambda: signature(objective(13)),
        lambda: signature(objective(act=nn.ReLU)),
        lambda: signature(objective(mode="frozen")),
        lambda: signature(objective().in_double()),
        lambda: signature(objective().restricted(["0.weight"])),
        lambda: signature(Objective(frozen.model, CrossEntropy(), frozen.data.batches)),
    ]
    found = {other() for other in others}
    assert base not in found
    assert len(found) == len(others)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert signature(objective()) != base
    finally:
        torch.set_num_threads(threads)
