"""Finite gradients give finite weights under every optimizer and all settings, or a setting is refused by its name."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.optimizer import OptimizerError, create, names, settings
from lossscope.optimizer.registry import ENTRIES
from lossscope.optimizer.update.rules import RULES
from required_settings import ONE_KIND_OF_PASS

Tensors = dict[str, Tensor]
NAMES = [name for name in names() if name not in RULES or name in ONE_KIND_OF_PASS]  # steps of gradients alone

SHAPES = {
    "W": (4, 6),
    "tall": (7, 3),
    "b": (5,),
    "heads": (2, 3, 4),
    "kernel": (3, 2, 2, 2),
    "scalar": (),
    "none": (0,),
    "empty": (3, 0),
    "long": (2, 300),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BASES = (*ONE_KIND_OF_PASS, "adarmsuon", "ars2-base", "adamw@rms")
CHOICES: dict[str, tuple[Any, ...]] = {
    "lr": (0, 1e-3, 0.1, 1e3),
    "vector_lr": (1e-3, 0.0),
    "weight_decay": (0, 0.1, 1.0),
    "eps": (0, 1e-30, 1e-12, 1e-8, 1e-3, 1.0),
    "rms_eps": (0, 1e-30, 1e-8, 1e-3),
    "betas": ((0.9, 0.999), (0.0, 0.0), (0.9, 0.0), (0.0, 0.999), (0.999999, 0.999999), (0.99, 0.99)),
    "momentum": (0.0, 0.5, 0.95, 0.999999),
    "nesterov": (True, False),
    "rho": (0, 1e-3, 0.1, 10.0),
    "alpha": (0.0, 0.1, -1.0, 1e6),
    "k": (2, 3),
    "aga_lambda": (0.0, 2.0, math.inf),
    "aga_gamma": (-100.0, 0.0, 2.0, 100.0),
    "aga_beta": (0.0, 0.5, 0.99),
    "perturbation": ("ars2", "paper", "sam", "asam", "random", "random_ball"),
    "shear": ("looksam", "placebo", "signflip", "off"),
    "trigger": ("reference", "lagged"),
    "energy": ("reference", "unit", "rms"),
    "newton_schulz": ("keller", "you", "polar_express", "classical", "cubic5"),
    "ns_steps": (1, 5, 8),
    "ns_dtype": ("auto", "float64", "float32", "bfloat16", "float16"),
    "ns_norm": ("frobenius", "schatten4"),
    "adjust": ("keller", "moonlight", "none"),
    "equilibrate": ("R", "C", "RC"),
    "nu": (0.0, 1e-4, 1.0),
    "row_beta": (0.0, 0.95),
    "flatten": (True, False),
}
KINDS = ("normal", "zero", "huge", "large", "small", "denormal", "1e-18", "sparse", "mixed", "equal")


def chosen(draw: random.Random, name: str) -> dict[str, Any]:
    """Return random settings that the optimizer of that name takes."""
    found: dict[str, Any] = {"base": draw.choice(BASES)} if "base" in settings(name) else {}
    known, required = set(settings(name)), set(ENTRIES[name].required)
    if found:
        base = found["base"]
        known = set(settings(base)) | ({"rho", "alpha", "k"} & set(ENTRIES[name].usual))
        required = set(ENTRIES[base].required)
    for setting, values in CHOICES.items():
        if setting in known and (draw.random() < 0.4 or setting in required):
            found[setting] = draw.choice(values)
    return found


def gradient(shape: tuple[int, ...], dtype: torch.dtype, kind: str, generator: torch.Generator) -> Tensor:
    """Return a random gradient; its largest size is a quarter of the dtype's range, and 1e140 in float64."""
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    top, tiny = min(torch.finfo(dtype).max / 4, 1e140), max(torch.finfo(dtype).tiny, 1e-300)
    powers = torch.empty(shape, dtype=torch.float64).uniform_(math.log10(tiny), math.log10(top), generator=generator)
    shown = torch.rand(shape, generator=generator) < 0.1
    made = {
        "normal": g,
        "zero": 0 * g,
        "huge": g.clamp(-1, 1) * top,
        "large": g * top**0.6,
        "small": g * tiny**0.5,
        "denormal": g * tiny / 8,
        "1e-18": g * 1e-18,
        "sparse": g * shown,
        "mixed": g * 10.0**powers,
        "equal": torch.full_like(g, 1000.0),
    }
    return made[kind].clamp(-top, top).to(dtype)


def step(optimizer: Any, parameters: Tensors, gradients: list[Tensors]) -> None:
    """Take a step whose passes get these gradients."""
    passes = iter(gradients)

    def closure() -> Tensor:
        for name, g in next(passes).items():
            parameters[name].grad = g.to(parameters[name].dtype)
        return torch.zeros(())

    optimizer.step(closure)


def refused(optimizer: Any, parameters: Tensors, gradients: list[Tensors]) -> str:
    """Take a step and return the words with which it was refused, if it was."""
    try:
        step(optimizer, parameters, gradients)
    except OptimizerError as error:
        return str(error)
    return ""


def largest(optimizer: Any, parameters: Tensors, fed: list[float]) -> float:
    """Return the largest size of weights, momenta and gradients that were followed."""
    kept = ("momentum_buffer", "exp_avg", "shear")
    held = [value for state in optimizer.state.values() for key, value in state.items() if key in kept]
    sizes = [float(x.detach().abs().max()) for x in (*parameters.values(), *held) if x.numel()]
    return max([*sizes, *fed], key=lambda size: math.inf if math.isnan(size) else size)


def made(name: str, weights: Tensors, given: dict[str, Any]) -> tuple[Any, str]:
    """Return the optimizer, or None and the words with which it was refused."""
    try:
        return create(name, list(weights.items()), **given), ""
    except OptimizerError as error:
        return None, str(error)


def outcome(seed: int) -> str:
    """Return how six steps of a random configuration ended: `finite`, `refused`, or `overflows`.

    It overflows if weights, momenta or gradients of the same steps in float64 come near the end of the dtype's range:
    such weights have no place in it.
    """
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    name, dtype = draw.choice(NAMES), draw.choice(DTYPES)
    given, kinds = chosen(draw, name), [draw.choice(KINDS), draw.choice(KINDS)]
    shapes = {key: shape for key, shape in SHAPES.items() if key == "W" or draw.random() < 0.5}
    spread = {key: draw.choice((0.0, 0.1, 1.0)) for key in shapes}
    start = {key: spread[key] * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    weights: Tensors = {key: nn.Parameter(value.to(dtype)) for key, value in start.items()}
    wide: Tensors = {key: nn.Parameter(value.double()) for key, value in start.items()}
    optimizer, refusal = made(name, weights, given)
    if optimizer is None:
        assert any(f"{key}=" in refusal for key in settings(name)), refusal
        return "refused"
    twin, fed = create(name, list(wide.items()), **given), [0.0]
    twin.observe(lambda record: fed.extend(float(t.followed.abs().max()) for t in record.tensors if t.followed.numel()))
    for number in range(6):
        kind = kinds[number % 2]
        gradients = [{key: gradient(shape, dtype, kind, generator) for key, shape in shapes.items()} for _ in range(2)]
        refusal = refused(optimizer, weights, gradients)
        step(twin, wide, gradients)
        if refusal:
            assert "lr=" in refusal, refusal
            assert not largest(twin, wide, fed) < torch.finfo(dtype).max / 16, refusal
        if not largest(twin, wide, fed) < torch.finfo(dtype).max / 16:
            return "overflows"
        lost = [key for key, weight in weights.items() if not bool(torch.isfinite(weight).all())]
        assert not lost, f"seed {seed}, step {number}: {lost} under {name} with {given}, {dtype}, {kinds}"
    return "finite"


@pytest.mark.parametrize("seeds", [range(60), pytest.param(range(1000, 4000), marks=pytest.mark.slow)], ids=len)
def test_finite_gradients_give_finite_weights_or_a_setting_is_refused(seeds: range) -> None:
    ended = Counter(map(outcome, seeds))
    assert ended["finite"] > len(seeds) / 2
    assert ended["refused"] < len(seeds) / 3
    assert ended["overflows"] < len(seeds) / 3


@pytest.mark.parametrize(
    ("name", "given"), [("sgd", {}), ("sam", {}), ("looksam", {}), ("gsam", {}), ("clion", {"nu": 1e38})]
)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e37), (torch.bfloat16, 1e37), (torch.float16, 1e4)])
def test_a_learning_rate_that_takes_weights_out_of_their_range_is_refused(
    name: str, given: dict[str, Any], dtype: torch.dtype, size: float
) -> None:
    weights: Tensors = {"w": nn.Parameter(torch.ones(4, dtype=dtype))}
    g = torch.full((4,), size, dtype=dtype)
    optimizer = create(name, list(weights.items()), lr=1000.0, **given)
    assert re.match("lr=1000 takes weights out of the range", refused(optimizer, weights, [{"w": g}] * 2))
    assert bool(torch.isfinite(weights["w"]).all())
    optimizer.param_groups[0]["lr"] = 1.0
    assert not refused(optimizer, weights, [{"w": g}] * 2)
    assert bool(torch.isfinite(weights["w"]).all())


def test_a_gradient_that_is_not_finite_is_not_refused_under_a_large_learning_rate() -> None:
    w = nn.Parameter(torch.ones(3))
    optimizer = create("sgd", [("w", w)], lr=100.0)
    assert not refused(optimizer, {"w": w}, [{"w": torch.tensor([1.0, math.inf, math.nan])}])
    assert torch.isfinite(w).tolist() == [True, False, False]


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_and_odd_shapes_leave_weights_finite(name: str) -> None:
    given = {"nu": 1e-4} if "nu" in ENTRIES[name].required else {}
    weights: Tensors = {key: nn.Parameter(torch.ones(shape)) for key, shape in SHAPES.items()}
    optimizer = create(name, list(weights.items()), **given)
    for scale in (0.0, 1.0, 0.0):
        step(optimizer, weights, [{key: scale * torch.ones(shape) for key, shape in SHAPES.items()}] * 2)
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())
    assert all(weight.dtype == torch.float32 for weight in weights.values())


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-18, 1e-8, 1.0, 1e30])
@pytest.mark.parametrize("ns_dtype", ["float32", "bfloat16", "float16"])
def test_schatten4_takes_gradients_of_every_scale_to_the_same_factor(scale: float, ns_dtype: str) -> None:
    g = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    factors = []
    for size in (scale, 1.0):
        w = nn.Parameter(torch.zeros(4, 6))
        optimizer = create(
            "muon", [("w", w)], ns_norm="schatten4", ns_dtype=ns_dtype, nesterov=False, momentum=0.0, lr=1.0
        )
        w.grad = size * g
        optimizer.step()
        factors.append(w.detach())
    assert bool(torch.isfinite(factors[0]).all())
    if scale > 1e-38:  # below it the gradient has lost digits
        # products in half precision keep three digits, which five polynomials multiply
        torch.testing.assert_close(*factors, rtol=0, atol=1e-5 if ns_dtype == "float32" else 0.1)
