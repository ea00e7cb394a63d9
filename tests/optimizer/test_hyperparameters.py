"""Settings out of bounds are refused in one sentence, with the value and the bound."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from torch import nn

from lossscope.optimizer import ARS2Neo, OptimizerError, RuleOptimizer, names, settings
from lossscope.optimizer.hyperparameters import DEFAULTS
from required_settings import create


def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (2, 2), dtype=dtype))


BAD = [
    ({"lr": -1e-3}, r"lr=-0.001 must be at least 0"),
    ({"lr": float("nan")}, r"lr=nan must be at least 0"),
    ({"lr": "0.1"}, r"lr='0.1' must be at least 0"),
    ({"lr": True}, r"lr=True must be at least 0"),
    ({"eps": -1.0}, r"eps=-1.0 must be at least 0"),
    ({"lr": torch.tensor([1.0, 2.0])}, r"lr=tensor\(\[1., 2.\]\) must be at least 0 and finite"),
    ({"eps": float("inf")}, r"eps=inf must be at least 0 and finite"),
    ({"weight_decay": -0.1}, r"weight_decay=-0.1 must be at least 0"),
    ({"weight_decay": float("inf")}, r"weight_decay=inf must be at least 0 and finite"),
    ({"rho": -0.1}, r"rho=-0.1 must be at least 0 and finite; 0 disables the ascent"),
    ({"betas": (1.0, 0.9)}, r"betas=1.0 must be two numbers in \[0, 1\)"),
    ({"betas": (0.9, -0.1)}, r"betas=-0.1 must be two numbers in \[0, 1\)"),
    ({"betas": (0.9,)}, r"betas=\(0.9,\) must be two numbers in \[0, 1\)"),
    ({"betas": 0.9}, r"betas=0.9 must be two numbers in \[0, 1\)"),
    ({"rho": float("inf")}, r"rho=inf must be at least 0 and finite; 0 disables the ascent"),
    ({"alpha": float("nan")}, r"alpha=nan must be a finite number"),
    ({"aga_beta": 1.0}, r"aga_beta=1.0 must be in \[0, 1\)"),
    ({"aga_lambda": -1.0}, r"aga_lambda=-1.0 must be at least 0"),
    ({"aga_gamma": float("inf")}, r"aga_gamma=inf must be a finite number"),
    (
        {"replay_counts": (2, 6), "replay_window": 5},
        r"replay_counts=\(2, 6\) must be integers from 0 to replay_window=5",
    ),
    ({"replay_counts": (True,), "replay_window": 5}, r"replay_counts=\(True,\) must be integers"),
    ({"replay_counts": (3,)}, r"replay_counts=\(3,\) must be a list of counts, one for each window of replay_window"),
    ({"mode": "Base"}, r"mode='Base' must be one of 'base', 'sync', 'lazy', 'aga'"),
    ({"energy": "frobenius"}, r"energy='frobenius' must be one of 'reference', 'unit', 'rms'"),
    ({"perturbation": "fisher"}, r"perturbation='fisher' must be one of 'ars2', 'paper', 'sam', 'asam'"),
    ({"shear": "on"}, r"shear='on' must be one of 'looksam', 'placebo', 'signflip', 'off'"),
    ({"trigger": "early"}, r"trigger='early' must be one of 'reference', 'lagged'"),
    ({"newton_schulz": "jordan"}, r"newton_schulz='jordan' must be one of [^\n]*keller"),
    ({"newton_schulz": [1]}, r"newton_schulz=\[1\] must be one of [^\n]*keller"),
    ({"newton_schulz": "deepseek_v4"}, r"ns_steps=5 omits .*: set ns_steps=10"),
    ({"ns_steps": True}, r"ns_steps=True must be an integer >= 1"),
    ({"ns_steps": 0}, r"ns_steps=0 must be an integer >= 1"),
    ({"ns_steps": 2.5}, r"ns_steps=2.5 must be an integer >= 1"),
    ({"ns_dtype": "int8"}, r"ns_dtype='int8' must be 'auto', a floating torch.dtype or one of float64"),
    ({"ns_dtype": torch.int32}, r"ns_dtype=torch.int32 must be 'auto', a floating torch.dtype"),
    ({"orthogonalize": "yes"}, r"orthogonalize='yes' must be one of True, False"),
]


@pytest.mark.parametrize(("setting", "words"), BAD, ids=lambda x: next(iter(x)) if isinstance(x, dict) else None)
def test_a_setting_out_of_bounds_is_refused(setting, words):
    with pytest.raises(OptimizerError, match=words):
        ARS2Neo([parameter()], **setting)


def test_every_argument_of_the_constructor_is_a_setting_of_a_group_with_the_same_default():
    arguments = signature(ARS2Neo).parameters
    for name, argument in arguments.items():
        if name not in ("params", "k"):
            assert DEFAULTS[name] == argument.default, name
    optimizer = ARS2Neo([parameter()])
    assert DEFAULTS.keys() <= optimizer.param_groups[0].keys()
    assert DEFAULTS.keys() == optimizer.defaults.keys()


SHARED = {
    "mode": "sync",
    "alpha": 0.5,
    "aga_beta": 0.5,
    "aga_lambda": 0.5,
    "aga_gamma": 0.5,
    "perturbation": "sam",
    "shear": "off",
    "trigger": "lagged",
    "newton_schulz": "you",
    "ns_steps": 3,
}


@pytest.mark.parametrize(("name", "value"), SHARED.items())
def test_groups_cannot_differ_in_what_is_decided_once(name, value):
    groups = [{"params": [parameter()]}, {"params": [parameter()], name: value}]
    with pytest.raises(OptimizerError, match=rf"{name} must be equal in all groups, got .* and .* in the first group"):
        ARS2Neo(groups)


def test_a_refused_group_is_not_added():
    optimizer = ARS2Neo([parameter()])
    with pytest.raises(OptimizerError, match="mode must be equal in all groups"):
        optimizer.add_param_group({"params": [parameter()], "mode": "sync"})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [parameter()], "lr": 0.5, "rho": 0.3, "energy": "unit", "eps": 1e-6})
    assert len(optimizer.param_groups) == 2


def test_a_period_that_comes_with_the_groups_is_checked_too():
    with pytest.raises(OptimizerError, match=r"k=1 must be an integer >= 2"):
        ARS2Neo([{"params": [parameter()], "mode": "lazy"}])
    assert ARS2Neo([{"params": [parameter()], "mode": "lazy", "k": 3}]).param_groups[0]["k"] == 3


def test_an_unknown_setting_of_a_group_is_told_the_known_ones():
    with pytest.raises(OptimizerError, match=r"unknown setting 'is_rmsuon_group'; known: [^\n]*lr, betas"):
        ARS2Neo([{"params": [parameter()], "is_rmsuon_group": True}])


@pytest.mark.parametrize("track", ["rows", True])
def test_a_track_that_does_not_exist_is_refused(track):
    with pytest.raises(OptimizerError, match=r"track=.* must be one of 'matrix', 'vector', None"):
        ARS2Neo([{"params": [parameter()], "track": track}])


def test_a_vector_cannot_be_a_matrix():
    with pytest.raises(OptimizerError, match="track='matrix' needs parameters with at least 2 dimensions"):
        ARS2Neo([{"params": [parameter(3)], "track": "matrix"}])


def test_complex_parameters_are_refused():
    with pytest.raises(OptimizerError, match="real floating-point parameters, got torch"):
        ARS2Neo([parameter(), nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])


def test_a_model_whose_matrices_are_all_sent_to_the_vector_track_is_refused():
    with pytest.raises(OptimizerError, match=r"found no matrix \(ndim >= 2\) among 1 parameters"):
        ARS2Neo([{"params": [parameter()], "track": "vector"}])


COUNTERS = ("clock", "last_sync", "syncs", "phi_variance", "phi_count")


@pytest.mark.parametrize("name", COUNTERS)
def test_what_the_optimizer_counts_is_no_setting_and_is_not_offered_as_one(name):
    words = rf"^{name} is a counter of the optimizer, not a setting; [^\n]+$"
    with pytest.raises(OptimizerError, match=words):
        RuleOptimizer([parameter()], "sgd", **{name: 7})
    for make in (ARS2Neo, lambda groups: RuleOptimizer(groups, "sgd")):
        with pytest.raises(OptimizerError, match=words):
            make([{"params": [parameter()], name: 7}])
        with pytest.raises(OptimizerError, match=r"unknown setting 'wd'; known: ") as caught:
            make([{"params": [parameter()], "wd": 7}])
        assert name not in str(caught.value)
    with pytest.raises(OptimizerError, match="rule sgd has no setting 'wd'; known: ") as caught:
        RuleOptimizer([parameter()], "sgd", wd=7)
    assert name not in str(caught.value)


def test_two_parameters_of_one_name_are_refused():
    words = r"^two parameters have the name 'w'; give them distinct names, [^\n]+$"
    with pytest.raises(OptimizerError, match=words):
        ARS2Neo([("w", parameter()), ("w", parameter())])
    optimizer = ARS2Neo([("w", parameter())])
    with pytest.raises(OptimizerError, match=words):
        optimizer.add_param_group({"params": [("w", parameter())]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", [name for name in names() if "newton_schulz" in settings(name)])
def test_a_matrix_without_elements_stands_beside_others(name):
    base = {"base": "muon"} if "base" in settings(name) else {}
    pairs = [("w", parameter(2, 2)), ("none", nn.Parameter(torch.ones(3, 0))), ("wide", nn.Parameter(torch.ones(0, 3)))]
    optimizer, alone = create(name, pairs, **base), create(name, [("w", copy := parameter(2, 2))], **base)
    with torch.no_grad():
        copy.copy_(pairs[0][1])

    def closure(used):
        for p in used:
            p.grad = torch.arange(1.0, 1 + p.numel()).reshape(p.shape)
        return torch.zeros(())

    optimizer.step(lambda: closure([p for _, p in pairs]))
    alone.step(lambda: closure([copy]))
    assert torch.equal(pairs[0][1], copy)


@pytest.mark.parametrize(
    ("name", "given", "dtype", "words"),
    [
        ("adamw", {"eps": 0}, torch.float32, r"eps=0 must be at least 3\.7e-23 for torch\.float32"),
        ("ars2-sync", {"eps": 1e-30}, torch.float32, r"eps=1e-30 must be at least 3\.7e-23"),
        ("ars2-base", {}, torch.float16, r"eps=1e-08 must be at least 2\.4e-04 for torch\.float16"),
        ("adamuon", {"rms_eps": 0.0}, torch.float64, r"rms_eps=0\.0 must be at least 2\.2e-162"),
    ],
)
def test_a_floor_below_the_smallest_root_of_a_square_is_refused(name, given, dtype, words):
    with pytest.raises(OptimizerError, match=rf"^optimizer {name}: {words}[^\n]*: set (rms_)?eps, or keep the weights"):
        create(name, [("w", nn.Parameter(torch.ones(2, 2, dtype=dtype)))], **given)
    create("muon", [("w", nn.Parameter(torch.ones(2, 2, dtype=torch.float16)))])  # no vector uses its eps


def test_a_model_that_is_cast_to_float16_later_is_refused_at_its_first_step():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = create("adamw", [("w", w)])
    w.data = w.data.half()
    w.grad = torch.ones(2, 2, dtype=torch.float16)
    with pytest.raises(OptimizerError, match=r"^eps=1e-08 must be at least 2\.4e-04 for torch\.float16"):
        optimizer.step()
