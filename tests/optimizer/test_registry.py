"""Optimizers by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lossscope.optimizer import (
    ENTRIES,
    ARS2Neo,
    Bound,
    OptimizerError,
    Rule,
    RuleOptimizer,
    Update,
    decay,
    move,
    names,
    register,
    registry,
    settings,
    zeros,
)
from required_settings import create


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


RATES = {"adamw": 0.02, **dict.fromkeys(("sgd", "sam", "gsam", "asam", "looksam"), 0.5)}
RATES |= dict.fromkeys(("muon", "adamuon", "normuon", "polargrad", "fismo"), 0.1) | {"muoneq": 0.3}
RATES |= {"sophia-g": 0.03, "adahessian": 0.15, "zo-gd": 0.02, "kfac": 0.1}
STEPS = {"zo-gd": 400}  # one direction of all a step


@pytest.mark.parametrize("name", names())
def test_every_registered_optimizer_lowers_the_loss(name):
    model, (x, y) = network(), data()
    optimizer, losses = create(name, model, lr=RATES.get(name, 0.005)), []
    for _ in range(STEPS.get(name, 30)):
        for p in optimizer.passes(model):
            logits = model(x)
            p.backward(F.cross_entropy(logits, p.labels(logits, y)))
        losses.append(float(optimizer.step()))
    assert losses[-1] < 0.6 * losses[0]


def test_every_name_is_described():
    assert set(ENTRIES) == set(names())
    assert len({entry.words for entry in ENTRIES.values()}) == len(names())
    assert all(entry.source for entry in ENTRIES.values())


def test_the_names_say_the_mode():
    for name in names():
        optimizer = create(name, network())
        mode = name.removeprefix("ars2-")
        if name.startswith("ars2-") and mode != "random":
            assert isinstance(optimizer, ARS2Neo)
            assert optimizer.param_groups[0]["mode"] == mode
    control = create("adamw@rms", network())
    assert isinstance(control, ARS2Neo)
    assert control.param_groups[0]["orthogonalize"] is False


@pytest.mark.parametrize("name", names())
def test_a_model_and_its_named_parameters_are_the_same(name):
    model = network()
    by_model, by_names = create(name, model), create(name, model.named_parameters())
    first, again = (
        [
            (name, p)
            for group in made.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        ]
        for made in (by_model, by_names)
    )
    assert first == again
    assert {name for name, _ in first} == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_overrides_reach_the_optimizer():
    optimizer = create("ars2-lazy", network(), rho=0.3, k=4, betas=(0.8, 0.9))
    group = optimizer.param_groups[0]
    assert (group["rho"], group["k"], group["betas"]) == (0.3, 4, (0.8, 0.9))


def test_the_settings_are_those_that_are_accepted():
    assert "rho" in settings("ars2-sync")
    assert "mode" not in settings("ars2-sync")
    assert not {"mode", "orthogonalize"} & set(settings("adamw@rms"))
    assert "momentum" in settings("sgd")
    assert "params" not in settings("adamw")


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(OptimizerError, match="unknown optimizer 'ars2-lasy'; did you mean ars2-lazy"):
        create("ars2-lasy", network())
    with pytest.raises(OptimizerError, match=r"unknown optimizer 'zzz'; known: [^\n]*sgd"):
        settings("zzz")


def test_an_unknown_setting_is_told_the_nearest():
    with pytest.raises(
        OptimizerError, match="optimizer ars2-sync has no setting 'weight_decy'; did you mean weight_decay"
    ):
        create("ars2-sync", network(), weight_decy=0.1)
    with pytest.raises(OptimizerError, match="optimizer adamw has no setting 'rho'"):
        create("adamw", network(), rho=0.1)
    with pytest.raises(OptimizerError, match="optimizer ars2-base has no setting 'mode'"):
        create("ars2-base", network(), mode="sync")


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("ars2-base", {"lr": -1.0}, r"optimizer ars2-base: lr=-1.0 must be at least 0"),
        ("ars2-lazy", {"k": 1}, r"optimizer ars2-lazy: k=1 must be an integer"),
        ("adamw", {"lr": -1.0}, r"optimizer adamw: lr=-1.0 must be at least 0"),
        ("sgd", {"lr": "fast"}, r"optimizer sgd: "),
        ("ars2-base", {"betas": 0.9}, r"optimizer ars2-base: betas=0.9 must be two numbers"),
    ],
)
def test_a_bad_value_is_one_sentence_with_the_name_of_the_optimizer(name, override, words):
    with pytest.raises(OptimizerError, match=words):
        create(name, network(), **override)


@pytest.mark.parametrize("name", names())
def test_a_model_with_nothing_to_train_is_refused(name):
    with pytest.raises(OptimizerError, match=f"no parameter requires a gradient; {name} has nothing to optimize"):
        create(name, network().requires_grad_(False))


@pytest.mark.parametrize("parameters", [None, 3, [(1, 2, 3)], [("w", 3)], [network()], {"w": torch.ones(2)}])
def test_what_is_neither_a_model_nor_named_parameters_is_one_sentence(parameters):
    words = r"^create\('adamw', ...\) takes a model or its named_parameters\(\), not \w+$"
    with pytest.raises(OptimizerError, match=words):
        create("adamw", parameters)


class Convolutions(nn.Module):
    """One-dimensional convolutions of both kinds, a raw parameter of three dimensions, and vectors."""

    def __init__(self, only: bool = False) -> None:
        super().__init__()
        self.down = nn.Conv1d(3, 6, 5, bias=not only)
        if not only:
            self.heads = nn.Parameter(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
            self.up = nn.ConvTranspose1d(6, 2, 3)


CUTTING = [name for name in names() if "ns_norm" in settings(name)]


@pytest.mark.parametrize("name", CUTTING)
def test_weights_of_one_dimensional_convolutions_are_one_matrix_each(name):
    base = {"base": "muon"} if "base" in settings(name) else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Convolutions()
        other = Convolutions()
    optimizer, again = create(name, model, **base), create(name, other, **base)
    shapes: dict[str, tuple[int, ...] | None] = {}
    optimizer.observe(lambda record: shapes.update({t.name: t.matrix_shape for t in record.tensors}))

    def train(model, optimizer):
        for p in optimizer.passes(model):
            p.backward(sum((q**3 + q**2).sum() for q in model.parameters()))
        optimizer.step()

    train(model, optimizer)
    assert shapes == {
        "down.weight": (6, 15),
        "heads": (2, 3, 4),
        "up.weight": (6, 6),
        "down.bias": None,
        "up.bias": None,
    }
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(model.state_dict())
    train(model, optimizer)
    train(other, again)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", CUTTING)
def test_a_model_that_is_one_convolution_has_one_group(name):
    base = {"base": "muon"} if "base" in settings(name) else {}
    (group,) = create(name, Convolutions(only=True), **base).param_groups
    assert (group["convolution"], group["param_names"]) == (True, ["down.weight"])


@pytest.mark.parametrize("rows", [2, 5])
def test_bare_parameters_are_refused_even_where_they_look_like_pairs(rows):
    with pytest.raises(OptimizerError, match=r"takes a model or its named_parameters\(\), not bare parameters"):
        create("adamw", nn.Linear(3, rows, bias=False).parameters())


def test_a_model_without_matrices_is_refused():
    with pytest.raises(OptimizerError, match="optimizer ars2-base: ARS2Neo found no matrix"):
        create("ars2-base", nn.LayerNorm(4))
    create("adamw", nn.LayerNorm(4))


def test_frozen_parameters_are_left_out():
    model = network()
    model[0].requires_grad_(False)
    assert create("ars2-base", model).param_groups[0]["param_names"] == ["2.weight", "2.bias"]


@pytest.fixture
def registered() -> Iterator[None]:
    """Undo registrations after the test."""
    tables = (registry.ENTRIES, registry.RULES, registry._BASES, registry._BASE_SETTINGS)
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


def test_a_rule_is_registered_at_run_time_with_its_settings_bounds_and_ascents(registered):
    def step(group, moments):
        decay(group, moments)
        updates = []
        for moment in moments:
            m = moment.state["memory"].mul_(0.5).add_(moment.gradient)
            moment.state["step"] += 1
            updates.append(move(group, moment, Update(m, group["gain"])))
        return updates

    above = Bound("above 0", lambda x: x > 0)
    rule = Rule(
        step=step,
        words="a dummy",
        source="a test",
        lr=0.1,
        settings={"gain": 1.0},
        required=("need",),
        bounds={"gain": above, "need": above},
        fresh_state=zeros("memory"),
        momentum="memory",
    )
    assert "gain" not in settings("sam")
    register("dummy", rule)
    with pytest.raises(OptimizerError, match="an optimizer 'dummy' is registered already"):
        register("dummy", rule)
    assert "dummy" in names()
    assert set(settings("dummy")) == {"need", "lr", "weight_decay", "gain"}
    assert {"gain", "need"} <= set(settings("sam"))
    with pytest.raises(OptimizerError, match=r"^optimizer dummy: need is required by dummy and has no default"):
        registry.create("dummy", network())
    with pytest.raises(OptimizerError, match=r"^optimizer dummy: gain=-1 must be above 0$"):
        registry.create("dummy", network(), need=1, gain=-1)
    for name, options in (("dummy", {}), ("sam", {"base": "dummy"}), ("looksam", {"base": "dummy", "k": 2})):
        model, (x, y) = network(), data()
        optimizer = registry.create(name, model, lr=0.1, need=1, gain=2.0, **options)
        records = []
        optimizer.observe(records.append)
        losses = []
        for _ in range(5):
            for p in optimizer.passes(model):
                p.backward(F.cross_entropy(model(x), y))
            losses.append(float(optimizer.step()))
        assert losses[-1] < losses[0]
        assert all(torch.equal(t.momentum, optimizer.state[t.parameter]["memory"]) for t in records[-1].tensors)
        again = registry.create(name, network(), need=3, **options)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert again.param_groups[0]["need"] == 1
    with pytest.raises(OptimizerError, match="needs a second-moment estimate and dummy keeps none; use 'sam'"):
        RuleOptimizer(network().named_parameters(), "dummy", need=1, mode="sync", perturbation="ars2")
