"""The optimizer of a loop of the user's own: made from its state, or refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lossscope.landscape.curvature.optimizer_metric import optimizer_name
from lossscope.landscape.reprobe.restored_optimizer import OwnOptimizerError, own_optimizer
from lossscope.optimizer import ARS2Neo, RuleOptimizer, TwoPassOptimizer, create, names, settings

Make = Callable[[Any], torch.optim.Optimizer]


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))


def stepped(make: Make, parameters: Callable[[nn.Module], Any] = nn.Module.parameters) -> dict[str, Any]:
    """The state of an optimizer after a step."""
    model = network()
    optimizer = make(parameters(model))
    model(torch.ones(5, 3)).square().mean().backward()
    optimizer.step()
    return optimizer.state_dict()


MAKERS: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.5),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.5),
    "ARS2Neo": lambda p: ARS2Neo(p, lr=0.5),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("parameters", [nn.Module.parameters, nn.Module.named_parameters])
def test_the_class_is_found_by_its_name_and_everything_else_comes_with_the_state(name, parameters):
    state = stepped(MAKERS[name], parameters)
    found = own_optimizer({"arm": name}, state, network())
    assert type(found).__name__ == name
    assert found.param_groups[0]["lr"] == 0.5
    assert len(found.state) == 4


def take_step(optimizer: TwoPassOptimizer, model: nn.Module) -> None:
    for p in optimizer.passes(model):
        p.backward(model(torch.linspace(-1, 1, 15).reshape(5, 3)).square().mean())
    optimizer.step()


MADE: list[tuple[str, dict[str, str]]] = [(name, {}) for name in names()]
BASES = ("muon", "rmsuon", "ars2-base", "adamw@rms")
MADE += [(name, {"base": base}) for name in names() if "base" in settings(name) for base in BASES]


@pytest.mark.parametrize(("name", "options"), MADE)
def test_a_registered_optimizer_is_made_again_from_its_name_and_its_state(name, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, twin = network(), network()
    optimizer = create(name, model, lr=0.01, **options)
    take_step(optimizer, model)
    state = optimizer.state_dict()
    seen = {"optimizer": optimizer_name(optimizer), "arm": "my best"}
    chosen = {"config": {"optimizer": name, "options": options}, "optimizer": "RMSprop"}
    for manifest in (seen, chosen):
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
    for name, state_of, words in (
        ("adamw", "muon", "its state has adjust, which is another's"),
        ("muon", "normuon", "its state has row_beta, which is another's"),
        ("normuon", "muon", "its state has no row_beta"),
        ("sgd", "adamw", "its state has no momentum"),
        ("ars2-base", "rmsuon", "its state has no energy"),
        ("Muon", "torch", "its state has no mode"),
    ):
        made = torch.optim.Adam(model.parameters()) if state_of == "torch" else create(state_of, model)
        with pytest.raises(OwnOptimizerError, match=f"the run calls it {name}, but {words}"):
            own_optimizer({"optimizer": name}, made.state_dict(), network())


def test_the_class_that_was_seen_goes_before_an_arm_of_the_users_own_naming():
    state = stepped(MAKERS["AdamW"])
    assert type(own_optimizer({"arm": "sgd", "optimizer": "AdamW"}, state, network())) is torch.optim.AdamW
    assert type(own_optimizer({"arm": "my best", "config": {"optimizer": "adamw"}}, state, network())) is (
        torch.optim.AdamW
    )


def test_named_parameters_tell_which_are_in_which_group():
    def groups(model):
        named = list(model.named_parameters())
        return [{"params": named[2:], "weight_decay": 0.5}, {"params": named[:2], "weight_decay": 0.0}]

    model = network()
    found = own_optimizer({"arm": "AdamW"}, stepped(MAKERS["AdamW"], groups), model)
    assert [p is q for p, q in zip(found.param_groups[0]["params"], list(model.parameters())[2:], strict=True)]
    assert [group["weight_decay"] for group in found.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("manifest", "make", "model", "words"),
    [
        ({"arm": "Lion"}, "SGD", network(), "the run calls it 'Lion'; known are torch's SGD, Adam and AdamW"),
        ({}, "SGD", network(), "the run names none"),
        ({"arm": "sgd"}, "AdamW", network(), "calls it sgd, but its state has no momentum"),
        ({"arm": "adamw"}, "SGD", network(), "calls it adamw, but its state has no betas"),
        ({"arm": "ARS2Neo"}, "AdamW", network(), "its state has no energy"),
        ({"arm": "AdamW"}, "AdamW", network(5), r"exp_avg of shape \(4, 3\) belongs to another parameter"),
        ({"arm": "AdamW"}, "AdamW", network()[:1], "it steps 4 parameters, and the model has 2"),
        ({"arm": "ars2-base"}, "ARS2Neo", nn.LayerNorm(3), "cannot be made for this model"),
    ],
)
def test_a_state_that_is_not_its_own_is_refused_with_the_reason(manifest, make, model, words):
    with pytest.raises(OwnOptimizerError, match=words) as error:
        own_optimizer(manifest, stepped(MAKERS[make]), model)
    assert "\n" not in str(error.value)


def test_groups_without_names_are_refused():
    def groups(model):
        return [{"params": [p]} for p in model.parameters()]

    with pytest.raises(OwnOptimizerError, match=r"it has 4 groups, .* pass named parameters"):
        own_optimizer({"arm": "AdamW"}, stepped(MAKERS["AdamW"], groups), network())
