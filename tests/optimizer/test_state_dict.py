"""A saved state goes back into the kind of optimizer that saved it, and into no other."""

from __future__ import annotations

import copy
import io
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import draw
from lossscope.optimizer import ARS2Neo, OptimizerError, RuleOptimizer, create
from lossscope.optimizer.update.rules import RULES
from required_settings import required

FLOAT64 = torch.float64
KINDS = ("ars2", *RULES)
# State of a matrix and of a vector in the versions that did not save the rule with it; kinds with the same state can be
# told apart by the rule alone.
KEPT = {
    "ars2": "moments",
    "adamw": "moments",
    "rmsuon": "moments",
    "muon@rms": "moments",
    "sgd": "nothing",
    "muon": "momentum",
    "muoneq": "momentum",
    "adamuon": "momentum and squares",
    "normuon": "momentum and rows",
}
PAIRS = list(permutations(KINDS, 2))


def started(kind: str, **settings: Any) -> tuple[dict[str, nn.Parameter], Any]:
    w = {"W": nn.Parameter(draw(0, 4, 3)), "b": nn.Parameter(draw(1, 4))}
    return w, ARS2Neo(w.items(), **settings) if kind == "ars2" else of_rule(w, kind, **settings)


def of_rule(w: dict[str, nn.Parameter], kind: str, **settings: Any) -> RuleOptimizer:
    return RuleOptimizer(w.items(), kind, **required(kind), **settings)


def train(w: dict[str, nn.Parameter], optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        layer = nn.Linear(1, 1)
        layer.weight, layer.bias = w["W"], w["b"]
        for p in optimizer.passes():
            logits = torch.tanh(layer(draw(3, 5, 3)))
            p.backward(F.cross_entropy(logits, p.labels(logits, torch.arange(5) % 4), reduction="sum"))
        optimizer.step()


def tensors(w: dict[str, nn.Parameter], optimizer: Any) -> list[Tensor]:
    states = [optimizer.state[p] for p in w.values()]
    return [t.detach().clone() for t in (*w.values(), *(state[key] for state in states for key in sorted(state)))]


@cache
def saved(kind: str, **settings: Any) -> dict[str, Any]:
    w, optimizer = started(kind, **settings)
    train(w, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_refused(kind: str, state: dict[str, Any], words: str) -> None:
    """Loading the state is one sentence, and the optimizer goes on as if nobody had tried."""
    w, optimizer = started(kind)
    same_w, same = started(kind)
    train(w, optimizer, 1)
    train(same_w, same, 1)
    with pytest.raises(OptimizerError, match=rf"^{words}[^\n]+$"):
        optimizer.load_state_dict(state)
    assert str(optimizer.param_groups) == str(same.param_groups)
    train(w, optimizer, 1)
    train(same_w, same, 1)
    for a, b in zip(tensors(w, optimizer), tensors(same_w, same), strict=True):
        assert torch.equal(a, b)


def test_the_rows_are_those_of_rules():
    assert set(KEPT) <= set(KINDS)


@pytest.mark.parametrize(("theirs", "mine"), PAIRS)
def test_the_state_of_another_rule_is_refused(theirs, mine):
    assert_refused(mine, saved(theirs), f"the state was saved by the rule '{theirs}' and this optimizer uses")


@pytest.mark.parametrize(("theirs", "mine"), [pair for pair in permutations(KEPT, 2) if KEPT[pair[0]] != KEPT[pair[1]]])
def test_a_state_from_before_rules_were_saved_is_known_by_its_tensors(theirs, mine):
    state = {key: value for key, value in saved(theirs).items() if key != "rule"}
    assert_refused(mine, state, f"the state is not one of the rule '{mine}': for [Wb] it holds ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_from_before_rules_were_saved_is_loaded_by_its_own_kind(kind):
    of_several_kinds = kind in RULES and RULES[kind].needs  # whose passes are no ascent
    settings = {} if of_several_kinds else {"mode": "lazy", "k": 2, "shear": "placebo", "perturbation": "sam"}
    state = {key: value for key, value in saved(kind, **settings).items() if key != "rule"}
    w, optimizer = started(kind)
    optimizer.load_state_dict(state)
    train(w, optimizer, 1)
    assert optimizer.trigger_state.clock == 4


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0)])
def test_a_momentum_may_have_been_switched_on_or_off_before_saving(before, after):
    w, optimizer = started("sgd", momentum=before)
    train(w, optimizer, 2)
    optimizer.param_groups[0]["momentum"] = after
    other, loaded = started("sgd")
    with torch.no_grad():
        for new, old in zip(other.values(), w.values(), strict=True):
            new.copy_(old)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(w, optimizer, 2)
    train(other, loaded, 2)
    for a, b in zip(tensors(w, optimizer), tensors(other, loaded), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_torchs_adamw_goes_on_in_ours():
    w, _ = started("adamw")
    theirs = torch.optim.AdamW(w.values(), lr=0.02, weight_decay=0.3)
    for step in range(6):
        if step == 3:
            v = {name: nn.Parameter(p.detach().clone()) for name, p in w.items()}
            ours = create("adamw", v.items())
            ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        for weights, optimizer in ((w, theirs), *(((v, ours),) if step >= 3 else ())):
            optimizer.zero_grad()
            sum((p**4).sum() for p in weights.values()).backward()
            optimizer.step()
    for a, b in zip(w.values(), v.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_the_momentum_of_torchs_sgd_is_refused_rather_than_forgotten():
    w, _ = started("sgd")
    theirs = torch.optim.SGD(w.values(), lr=0.1, momentum=0.9)
    sum((p**4).sum() for p in w.values()).backward()
    theirs.step()
    assert_refused(
        "sgd", theirs.state_dict(), "the state is not one of the rule 'sgd': for W it holds momentum_buffer, expected"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_no_steps_is_loaded(kind):
    w, optimizer = started(kind)
    w2, fresh = started(kind)
    optimizer.load_state_dict(fresh.state_dict())
    train(w, optimizer, 1)
    train(w2, fresh, 1)
    for a, b in zip(tensors(w, optimizer), tensors(w2, fresh), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "shear"])
def test_the_state_of_other_parameters_is_refused(key):
    state = copy.deepcopy(saved("ars2", mode="lazy", k=2, perturbation="sam"))
    state["state"][0][key] = torch.zeros(3, 4, dtype=FLOAT64)
    words = rf"the state is one of other parameters: for W its {key} has the shape \(3, 4\), expected \(4, 3\); load it"
    assert_refused("ars2", state, words)


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_a_wider_model_is_refused(kind):
    w = {"W": nn.Parameter(draw(0, 6, 3)), "b": nn.Parameter(draw(1, 6))}
    settings = {"momentum": 0.9} if kind == "sgd" else {}
    wide = ARS2Neo(w.items()) if kind == "ars2" else of_rule(w, kind, **settings)
    train(w, wide, 1)
    if wide.state[w["W"]].keys() == {"step"}:  # a step count fits every parameter
        started(kind)[1].load_state_dict(wide.state_dict())
        return
    assert_refused(kind, wide.state_dict(), "the state is one of other parameters: for W its ")


@pytest.mark.parametrize("state", [None, {}, {"param_groups": []}, 3])
def test_what_is_no_state_is_refused(state):
    assert_refused("ars2", state, "not the state of an optimizer: ")


def test_the_state_of_another_arm_brings_its_settings():
    w, optimizer = started("ars2")
    assert not optimizer.takes_second_gradient
    optimizer.load_state_dict(copy.deepcopy(saved("ars2", mode="lazy", k=3, rho=0.2, lr=0.05)))
    first = optimizer.param_groups[0]
    assert (first["mode"], first["k"], first["rho"], first["lr"], first["clock"]) == ("lazy", 3, 0.2, 0.05, 3)
    train(w, optimizer, 1)
    assert optimizer.trigger_state.syncs == 2
