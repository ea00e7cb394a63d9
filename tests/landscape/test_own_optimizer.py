"""The optimizer of a loop of the user's own: made from its state, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lossscope.landscape.own_optimizer import OwnOptimizerError, own_optimizer
from lossscope.optimizer import ARS2Neo

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
        ({"arm": "Lion"}, "SGD", network(), "the run calls it 'Lion'; known are SGD, Adam, AdamW and ARS2Neo"),
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
