"""Inputs that every registered optimizer rejects, each with a one-sentence error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lossscope.optimizer import ENTRIES, Entry, OptimizerError, names, register, settings
from lossscope.optimizer.update.rules import RULES
from required_settings import create

EVERY = pytest.mark.parametrize("name", names())


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


BAD: dict[str, tuple[Any, ...]] = {
    "lr": (-1.0, math.nan, "fast", torch.tensor([1.0, 2.0])),
    "vector_lr": (-1.0, math.nan),
    "weight_decay": (-0.1, math.nan, math.inf),
    "betas": (0.9, (0.9,), (1.0, 0.9), (0.9, -0.1)),
    "eps": (-1e-8, math.nan, math.inf),
    "rms_eps": (-1e-8,),
    "momentum": (1.0, -0.1),
    "row_beta": (1.0, -0.1),
    "nesterov": ("yes",),
    "newton_schulz": ("kellr", ["keller"]),
    "ns_steps": (0, 2.5, True),
    "ns_dtype": ("int8", torch.int8),
    "ns_norm": ("nuclear",),
    "adjust": ("moon",),
    "equilibrate": ("X",),
    "energy": ("half",),
    "orthogonalize": ("often",),
    "flatten": ("often",),
    "rho": (-0.1, math.nan, math.inf, "far"),
    "perturbation": ("upward",),
    "k": (0, 1, 2.5),
    "alpha": (math.nan, "much"),
    "shear": ("sideways",),
    "aga_beta": (1.0, -0.1),
    "aga_lambda": (-1.0,),
    "aga_gamma": (math.inf,),
    "replay_counts": ((3,), "often"),
    "replay_window": (-1, 2.5, True),
    "trigger": ("hair",),
    "seed": (0.5, "lucky", True),
    "base": ("adm",),
    "period": (0, 2.5, math.inf, math.nan),
    "gamma": (0.0, -1.0, math.inf),
    "power": (0.0, 1.5, math.nan),
    "mu": (0.0, -1.0, math.inf, 1e-4),
    "damping": (0.0, -1.0, math.nan),
    "factor_beta": (1.0, -0.1),
}


def bad_cells() -> Iterator[Any]:
    """Every setting of every name with a bad value, and with each of them where the setting first occurs."""
    seen: set[str] = set()
    for name in names():
        for setting in settings(name):
            base = next(
                (base for base, rule in RULES.items() if setting in (*rule.settings, *rule.required)), "ars2-base"
            )
            base = "muon" if setting == "vector_lr" else base
            more = {"base": base} if "base" in settings(name) and setting != "base" else {}
            values = BAD.get(setting, ("untested",))
            for value in values[:1] if setting in seen else values:
                yield pytest.param(name, setting, value, more, id=f"{name}-{setting}-{value}")
            seen.add(setting)


@pytest.mark.parametrize(("name", "setting", "value", "more"), list(bad_cells()))
def test_a_setting_out_of_bounds_is_one_sentence_that_names_it(name, setting, value, more):
    with pytest.raises(OptimizerError, match=rf"^optimizer {name}: {setting}=[^\n]+$"):
        create(name, network(), **{**more, setting: value})


@EVERY
def test_an_unknown_setting_is_one_sentence(name):
    with pytest.raises(OptimizerError, match=rf"^optimizer {name} has no setting 'learning_rate'[^\n]+$"):
        create(name, network(), learning_rate=0.1)
    optimizer = create(name, network())
    with pytest.raises(OptimizerError, match=r"^a parameter group has the unknown setting 'wd'; known: [^\n]+$"):
        optimizer.add_param_group({"params": [("extra", nn.Parameter(torch.ones(2, 2)))], "wd": 0.1})
    assert len(optimizer.param_groups) == len(create(name, network()).param_groups)


@EVERY
def test_a_name_is_registered_once(name):
    with pytest.raises(OptimizerError, match=rf"an optimizer '{name}' is registered already \(.*use another name"):
        register(name, Entry("another", "nobody", ENTRIES["sgd"].make))
    assert ENTRIES[name].words != "another"


@EVERY
def test_sparse_gradients_are_refused_before_anything_moves(name):
    table = nn.Embedding(4, 3, sparse=True).double()
    if name == "kfac":  # a table is no dense layer
        with pytest.raises(OptimizerError, match="no weight of a dense layer"):
            create(name, table)
        return
    optimizer = create(name, table)
    before = table.weight.detach().clone()

    def train_once() -> None:
        for p in optimizer.passes():
            logits = table(torch.tensor([1, 2]))
            p.backward(nn.functional.cross_entropy(logits, p.labels(logits, torch.tensor([0, 1]))))
        optimizer.step()

    if name == "zo-gd":  # which takes no gradient
        train_once()
        return

    with pytest.raises(OptimizerError, match="a parameter of shape \\(4, 3\\) has a sparse gradient"):
        train_once()
    assert torch.equal(table.weight, before)


@EVERY
def test_complex_parameters_are_refused(name):
    W = nn.Parameter(torch.randn(3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(OptimizerError, match="must contain real floating-point parameters, got torch"):
        create(name, [("W", W)])
