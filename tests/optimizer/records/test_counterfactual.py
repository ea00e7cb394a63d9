"""The record of a step that injects a shear can tell what the step would have been without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import draw
from lossscope.optimizer import OptimizerError, StepRecord
from required_settings import ONE_KIND_OF_PASS, create

FLOAT64 = torch.float64
INJECTING: dict[str, tuple[str, dict[str, Any]]] = {
    "ars2-lazy": ("ars2-lazy", {"k": 3}),
    "ars2-aga": ("ars2-aga", {"k": 4, "aga_lambda": 0.5}),
    "ars2-timer": ("ars2-timer", {"k": 4}),
    "placebo": ("ars2-lazy", {"k": 3, "shear": "placebo"}),
    "signflip": ("ars2-lazy", {"k": 3, "shear": "signflip"}),
    **{f"looksam on {base}": ("looksam", {"k": 3, "base": base, "lr": 0.01}) for base in ONE_KIND_OF_PASS},
    "looksam with momentum": ("looksam", {"k": 3, "base": "sgd", "momentum": 0.9, "lr": 0.1}),
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("adamw", {}),
    "sam": ("sam", {}),
    "ars2-base": ("ars2-base", {}),
    "ars2-sync": ("ars2-sync", {}),
    "switched off": ("ars2-lazy", {"k": 3, "shear": "off"}),
    "without a radius": ("ars2-lazy", {"k": 3, "rho": 0.0}),
}


class Training:
    """A small network and its optimizer, whose batch is a function of the step."""

    def __init__(self, name: str, dtype: torch.dtype = FLOAT64, **settings: Any) -> None:
        self.model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            for i, p in enumerate(self.model.parameters()):
                p.copy_(draw(i, *p.shape) / 2)
        self.model.to(dtype)
        self.optimizer: Any = create(name, self.model, **{"weight_decay": 0.1, **settings})
        self.count = 0

    def loss(self) -> Tensor:
        x = draw(100 + self.count, 12, 5).to(self.model[0].weight)
        return F.cross_entropy(self.model(x), x[:, :3].argmax(1))

    def step(self, *, closed: bool = False) -> None:
        if closed:

            def closure() -> Tensor:
                self.optimizer.zero_grad()
                value = self.loss()
                value.backward()
                return value

            self.optimizer.step(closure)
        else:
            for p in self.optimizer.passes(self.model):
                p.backward(self.loss())
            self.optimizer.step()
        self.count += 1

    def tensors(self) -> list[Tensor]:
        states = [self.optimizer.state[p] for p in self.model.parameters()]
        return [*self.model.parameters(), *(state[key] for state in states for key in sorted(state))]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("dtype", "closed"),
    [(FLOAT64, False), (FLOAT64, True), (torch.bfloat16, False)],
    ids=["passes", "closure", "bfloat16"],
)
@pytest.mark.parametrize(("name", "settings"), INJECTING.values(), ids=INJECTING)
def test_it_is_the_step_that_a_twin_without_injection_takes_and_changes_nothing(name, settings, dtype, closed):
    watched, silent = Training(name, dtype, **settings), Training(name, dtype, **settings)
    seen: list[dict[str, Tensor] | None] = []
    real: list[dict[str, Tensor]] = []

    def look(record: StepRecord) -> None:
        assert (record.uninjected is None) == record.synced
        seen.append(None if record.uninjected is None else record.uninjected())
        assert record.uninjected is None or same(list(seen[-1].values()), list(record.uninjected().values()))
        real.append({t.name: t.update for t in record.tensors})

    watched.optimizer.observe(look, counterfactual=True)
    for _ in range(7):
        twin = copy.deepcopy(watched)
        for group in twin.optimizer.param_groups:
            group["shear"] = "off"
        expected: list[dict[str, Tensor]] = []
        twin.optimizer.observe(lambda record, into=expected: into.append({t.name: t.update for t in record.tensors}))
        watched.step(closed=closed)
        twin.step()
        silent.step()
        if seen[-1] is not None:
            assert list(seen[-1]) == list(expected[0])
            assert same(list(seen[-1].values()), list(expected[0].values()))
            assert not same(list(seen[-1].values()), list(real[-1].values()))
    assert 2 <= sum(one is None for one in seen) < 7
    assert same(watched.tensors(), silent.tensors())
    assert watched.optimizer.trigger_state == silent.optimizer.trigger_state


@pytest.mark.parametrize(("name", "settings"), PLAIN.values(), ids=PLAIN)
def test_a_method_that_injects_nothing_has_none(name, settings):
    training = Training(name, **settings)
    seen: list[Any] = []
    training.optimizer.observe(lambda record: seen.append(record.uninjected), counterfactual=True)
    for _ in range(4):
        training.step()
    assert seen == [None] * 4


def test_there_is_none_unless_an_observer_asked_and_none_after_it_is_removed(monkeypatch):
    training = Training("ars2-lazy", k=2)
    seen: list[bool] = []
    training.optimizer.observe(lambda record: seen.append(record.uninjected is not None))
    handle = training.optimizer.observe(lambda record: None, counterfactual=True)
    training.step()
    training.step()
    handle.remove()
    monkeypatch.setattr("lossscope.optimizer.records.observers._copied", lambda moment: pytest.fail("it was copied"))
    for _ in range(2):
        training.step()
    assert seen == [False, True, False, False]


def test_a_group_without_a_radius_takes_part_with_the_step_it_takes():
    training = Training("ars2-lazy", k=2)
    extra = nn.Linear(3, 3).double()
    training.optimizer.add_param_group({"params": list(extra.named_parameters("extra")), "rho": 0.0})
    training.model.append(extra)
    records: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def look(record: StepRecord) -> None:
        if record.uninjected is not None:
            records.append((record.uninjected(), {t.name: t.update for t in record.tensors}))

    training.optimizer.observe(look, counterfactual=True)
    for _ in range(2):
        training.step()
    ((without, taken),) = records
    assert set(without) == set(taken) == {n for group in training.optimizer.param_groups for n in group["param_names"]}
    assert {n for n in taken if torch.equal(without[n], taken[n])} == {"extra.weight", "extra.bias"}


def test_it_is_over_when_the_callback_returns():
    training = Training("ars2-lazy", k=2)
    kept: list[StepRecord] = []
    training.optimizer.observe(kept.append, counterfactual=True)
    training.step()
    training.step()
    with pytest.raises(OptimizerError, match=r"^uninjected\(\) was called after its callback returned; [^\n]+$"):
        kept[-1].uninjected()


def test_its_copies_are_let_go_even_if_a_callback_raises():
    training = Training("ars2-lazy", k=2)
    training.step()
    kept: list[StepRecord] = []

    def broken(record: StepRecord) -> None:
        kept.append(record)
        raise KeyboardInterrupt

    training.optimizer.observe(broken, counterfactual=True)
    with pytest.raises(KeyboardInterrupt):
        training.step()
    with pytest.raises(OptimizerError, match="after its callback returned"):
        kept[0].uninjected()


def test_a_copy_of_an_optimizer_asks_for_nothing():
    training = Training("ars2-lazy", k=2)
    training.optimizer.observe(lambda record: None, counterfactual=True)
    twin = copy.deepcopy(training)
    seen: list[Any] = []
    twin.optimizer.observe(lambda record: seen.append(record.uninjected))
    twin.step()
    twin.step()
    assert seen == [None, None]
