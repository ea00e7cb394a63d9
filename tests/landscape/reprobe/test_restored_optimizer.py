"""The optimizer of a recorded run: rebuilt from its manifest and a state, or rejected with the reason."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lossscope.landscape.measures.optimizer_metric import optimizer_name
from lossscope.landscape.recording.run_metadata import run_metadata
from lossscope.landscape.reprobe.restored_optimizer import OwnOptimizerError, own_optimizer
from lossscope.landscape.storage.manifest import read_manifest, write_manifest
from lossscope.landscape.storage.schema import SCHEMA_VERSION
from lossscope.optimizer import ARS2Neo, RuleOptimizer, TwoPassOptimizer, create, names, settings
from required_settings import required

Make = Callable[[Any], torch.optim.Optimizer]


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


def recorded(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The manifest as it is read again."""
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder), {"schema_version": SCHEMA_VERSION, **run_metadata(model, [optimizer], None)})
        return read_manifest(folder)


def stepped(
    make: Make, parameters: Callable[[nn.Module], Any] = nn.Module.parameters
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of an optimizer and its state after a step, for which a scheduler has changed the lr."""
    model = network()
    optimizer = make(parameters(model))
    manifest = recorded(model, optimizer)
    model(torch.ones(5, 3)).square().mean().backward()
    for group in optimizer.param_groups:
        group["lr"] *= 0.5
    optimizer.step()
    return manifest, optimizer.state_dict()


MAKERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "SGD, nesterov": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.5), momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.5),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.5, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.5),
    "ARS2Neo": lambda p: ARS2Neo(p, lr=0.5, mode="aga", aga_lambda=float("inf"), ns_dtype=torch.float32),
    "RuleOptimizer": lambda p: RuleOptimizer(p, "muon", lr=0.5),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("parameters", [nn.Module.parameters, nn.Module.named_parameters])
def test_the_class_and_its_groups_are_those_of_the_manifest_and_the_present_settings_those_of_the_state(
    name, parameters
):
    if name in ("ARS2Neo", "RuleOptimizer"):
        model = network()
        optimizer = MAKERS[name](parameters(model))
        manifest = recorded(model, optimizer)
        optimizer.param_groups[0]["lr"] = 0.25
        take_step(optimizer, model)
        state = optimizer.state_dict()
    else:
        manifest, state = stepped(MAKERS[name], parameters)
    found = own_optimizer(manifest, state, network())
    assert type(found).__name__ == name.partition(",")[0]
    assert float(found.param_groups[0]["lr"]) == 0.25
    assert name != "ARS2Neo" or found.param_groups[0]["aga_lambda"] == math.inf
    assert len(found.state) == 4
    for key, value in state["param_groups"][0].items():
        assert key == "params" or found.param_groups[0][key] == value


def take_step(optimizer: TwoPassOptimizer, model: nn.Module) -> None:
    for p in optimizer.passes(model):
        logits = model(torch.linspace(-1, 1, 15).reshape(5, 3))
        p.backward(nn.functional.cross_entropy(logits, p.labels(logits, torch.arange(5) % 2)))
    optimizer.step()


MADE: list[tuple[str, dict[str, str]]] = [(name, {}) for name in names()]
BASES = ("muon", "rmsuon", "ars2-base", "adamw@rms")
MADE += [(name, {"base": base}) for name in names() if "base" in settings(name) for base in BASES]


@pytest.mark.parametrize(("name", "options"), MADE)
def test_a_registered_optimizer_is_rebuilt_from_the_manifest_and_its_state(name, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, twin = network(), network()
    optimizer = create(name, model, lr=0.01, **options, **required(name))
    manifest = recorded(model, optimizer)
    take_step(optimizer, model)
    state = optimizer.state_dict()
    twin.load_state_dict(model.state_dict())
    found = own_optimizer(manifest, copy.deepcopy(state), twin)  # loading a state does not copy its tensors
    assert type(found) is type(optimizer)
    assert isinstance(found, TwoPassOptimizer)
    assert optimizer_name(found) == optimizer_name(optimizer)
    take_step(found, twin)
    take_step(optimizer, model)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_name_of_a_relative_tells_its_rule_and_its_ascent():
    model = network()
    called = {
        "muon": create("muon", model),
        "sgd+sam": create("sam", model),
        "sgd": create("sam", model, rho=0.0),
        "adamw+asam": create("asam", model, base="adamw"),
        "sgd+gsam": create("gsam", model),
        "muon@rms": create("muon@rms", model),
        "ARS2Neo": create("sam", model, base="ars2-base"),
        "AdamW": torch.optim.AdamW(model.parameters()),
    }
    assert {name: optimizer_name(optimizer) for name, optimizer in called.items()} == {name: name for name in called}

    class Mine(RuleOptimizer):
        pass

    assert optimizer_name(Mine(model.named_parameters(), "sgd")) == "Mine"


def test_the_state_of_another_rule_is_refused():
    model = network()
    for name, other in (("adamw", "muon"), ("muon", "normuon"), ("sgd", "adamw"), ("ars2-base", "rmsuon")):
        manifest = recorded(model, create(name, model))
        with pytest.raises(OwnOptimizerError, match="do not fit the model: the state was saved by the rule"):
            own_optimizer(manifest, create(other, model).state_dict(), network())


def test_a_state_mark_decides_nothing():
    """A class of the user's own is not rebuilt, however much its state looks like Adam's."""

    class Mine(torch.optim.AdamW):
        pass

    manifest, state = stepped(Mine)
    with pytest.raises(OwnOptimizerError, match=r"to be rebuilt, got '[^']*Mine'"):
        own_optimizer(manifest, state, network())


def test_groups_are_rebuilt_by_the_names_of_the_model():
    def groups(model):
        named = list(model.parameters())
        return [{"params": named[2:], "weight_decay": 0.5}, {"params": named[:2], "weight_decay": 0.0}]

    model = network()
    found = own_optimizer(*stepped(MAKERS["AdamW"], groups), model)
    assert [p is q for p, q in zip(found.param_groups[0]["params"], list(model.parameters())[2:], strict=True)]
    assert [group["weight_decay"] for group in found.param_groups] == [0.5, 0.0]


def test_frozen_parameters_in_a_group_are_rebuilt_too():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = own_optimizer(recorded(model, optimizer), optimizer.state_dict(), network())
    assert len(found.param_groups[0]["params"]) == 4


@pytest.mark.parametrize(
    ("make", "model", "words"),
    [
        ("AdamW", network(5), r"exp_avg of shape \(4, 3\) belongs to another parameter"),
        ("AdamW", network()[:1], r"its parameter '2.weight' is not one of the model's"),
        ("ARS2Neo", network(5), "do not fit the model: the state is one of other parameters"),
    ],
)
def test_a_model_that_is_not_the_runs_is_refused_with_the_reason(make, model, words):
    if make == "ARS2Neo":
        own = network()
        optimizer = MAKERS[make](own.parameters())
        manifest = recorded(own, optimizer)
        take_step(optimizer, own)
        state = optimizer.state_dict()
    else:
        manifest, state = stepped(MAKERS[make])
    with pytest.raises(OwnOptimizerError, match=words) as error:
        own_optimizer(manifest, state, model)
    assert "\n" not in str(error.value)


def test_a_run_without_the_facts_is_refused_with_the_reason():
    _, state = stepped(MAKERS["AdamW"])
    with pytest.raises(OwnOptimizerError, match="recorded before schema 4"):
        own_optimizer({"arm": "AdamW", "optimizer": "AdamW"}, state, network())


def test_a_parameter_of_another_model_cannot_be_rebuilt():
    model, other = network(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(OwnOptimizerError, match=r"^its parameter None is not one of the model's"):
        own_optimizer(recorded(model, optimizer), optimizer.state_dict(), network())


def test_a_damaged_manifest_is_refused_with_the_reason():
    manifest, state = stepped(MAKERS["AdamW"])
    manifest["optimizer_facts"]["groups"][0]["settings"] = []
    with pytest.raises(OwnOptimizerError, match="do not fit the model"):
        own_optimizer(manifest, state, network())
