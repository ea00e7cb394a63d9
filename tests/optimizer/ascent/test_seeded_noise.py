"""Random numbers of optimizers: every integer is a valid seed, and no two draws are equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.optimizer import create
from lossscope.optimizer.ascent.seeded_noise import SeededNoise

DRAWING: dict[str, tuple[str, dict[str, Any]]] = {
    "random ascent": ("ars2-random", {}),
    "random ascent over one ball": ("ars2-sync", {"perturbation": "random_ball"}),
    "placebo": ("ars2-lazy", {"shear": "placebo", "k": 3}),
    "placebo of aga": ("ars2-aga", {"shear": "placebo"}),
    "timer": ("ars2-timer", {"aga_lambda": 0.5}),
}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3))


def ended(what: str, **more: Any) -> Tensor:
    """All weights after twelve steps."""
    name, options = DRAWING[what]
    model = network()
    optimizer = create(name, model, lr=0.01, **options, **more)
    x = torch.linspace(-1, 1, 200).reshape(10, 20)
    for _ in range(12):
        for p in optimizer.passes(model):
            p.backward((model(x) - x[:, :3].cos()).square().mean())
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("what", DRAWING)
def test_what_is_drawn_depends_on_the_seed_alone(what):
    assert torch.equal(ended(what, seed=0), ended(what))
    assert torch.equal(ended(what, seed=1), ended(what, seed=1))
    assert not torch.equal(ended(what, seed=1), ended(what))


@pytest.mark.parametrize("seed", [2**31 - 1, 2**40, 2**64, 10**30, -5])
@pytest.mark.parametrize("what", DRAWING)
def test_every_whole_number_is_a_seed(what, seed):
    assert bool(torch.isfinite(ended(what, seed=seed)).all())


def test_no_two_draws_are_alike_nor_any_of_them_in_the_global_stream():
    like = torch.zeros(4, 250, dtype=torch.float64)
    before = torch.get_rng_state()
    drawn = [
        SeededNoise(purpose, seed, step, index).normal_like(like).flatten()
        for purpose in ("ascent", "placebo")
        for seed in (0, 1, 10_007, 2**63)
        for step in (0, 1, 1_000_003)
        for index in (0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    cosines = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn), dtype=torch.float64)
    assert float(cosines.abs().max()) < 5 / 1000**0.5
    assert torch.equal(drawn[0], SeededNoise("ascent", 0, 0, 0).normal_like(like).flatten())


def test_a_draw_has_the_dtype_of_its_tensor_and_the_values_of_the_longest_one():
    draw = SeededNoise("ascent", 0, 0, 0)
    exact = draw.normal_like(torch.zeros(5, 3, dtype=torch.float64))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(draw.normal_like(torch.zeros(5, 3, dtype=dtype)), exact.to(dtype))


def test_the_radii_of_the_random_ascent_are_those_of_ars2():
    lengths = {}
    for name in ("ars2-sync", "ars2-random"):
        model = network()
        optimizer = create(name, model, rho=0.3)
        x = torch.linspace(-1, 1, 200).reshape(10, 20)
        for p in optimizer.passes(model):
            if p.index:
                start = dict(network().named_parameters())
                lengths[name] = [float((q - start[n]).norm().detach()) for n, q in model.named_parameters()]
            p.backward((model(x) - x[:, :3].cos()).square().mean())
    assert lengths["ars2-random"] == pytest.approx(lengths["ars2-sync"], rel=1e-5)
    assert lengths["ars2-random"] == pytest.approx([0.3] * 4, rel=1e-5)
