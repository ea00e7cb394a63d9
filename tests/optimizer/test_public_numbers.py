"""The numbers of the public ARS2-Neo: 20 steps in float64 in every mode.

`public_numbers.json` holds the parameters that the public optimizer reaches from `start()` on `loss()`:
`optimizer/ars2_neo.py` of dmf-archive/F3EO at commit 63a61bd, the version with adaptive sync, its single-process
arithmetic transcribed into a scratch script without the distributed branches (it is AGPL, so not part of this
repository). Computed on 2026-11-21 with torch 2.13.0
on a CPU. Nothing random is involved: the start and the loss are formulas.

Another CPU rounds differently, and 20 steps raise that: a start that is one unit of rounding away ends 1e-13 (lazy) to
8e-10 (sync) away. Every step rounds the parameters anew by about a unit, which grows over fewer steps than the first,
so that the sum over all of them is at most the number of steps times what becomes of the first. That is the tolerance;
it is measured, since it depends on the mode.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lossscope.optimizer import ARS2Neo

STEPS = 20
SHARED = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1, "rho": 0.1, "alpha": 0.2}
# Ours, and the same in the public code's words.
MODES = {
    "base": ({"mode": "base"}, {"k": 0}),
    "sync": ({"mode": "sync"}, {"k": 1}),
    "lazy": ({"mode": "lazy", "k": 3}, {"k": 3}),
    "aga": (
        {"mode": "aga", "k": 6, "aga_lambda": 0.1, "aga_beta": 0.9},
        {"k": 6, "adaptive_sync": True, "adaptive_lambda": 0.1, "adaptive_beta": 0.9},
    ),
}


def wave(*shape: int, phase: float) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.sin(phase + 1.7 * torch.arange(count, dtype=torch.float64)).reshape(shape)


def start() -> dict[str, Tensor]:
    return {
        "kernel": 0.5 * wave(4, 2, 2, 2, phase=0.3),
        "heads": 0.4 * wave(2, 3, 4, phase=1.1),
        "tall": 0.6 * wave(7, 6, phase=2.9),
        "wide": 0.5 * wave(3, 7, phase=0.7),
        "bias": 0.3 * wave(3, phase=2.2),
    }


def loss(p: dict[str, Tensor]) -> Tensor:
    x = torch.tanh(torch.nn.functional.conv2d(wave(5, 2, 2, 2, phase=0.1), p["kernel"])).flatten(1)
    x = torch.tanh(torch.einsum("bi,hji->bhj", x, p["heads"])).flatten(1)
    x = torch.tanh(x @ p["tall"].T)
    return torch.nn.functional.cross_entropy(x @ p["wide"].T + p["bias"], torch.tensor([0, 2, 1, 0, 2]))


def trained(optimizer_of, parameters: dict[str, Tensor], backward: bool) -> dict[str, Tensor]:
    leaves = {name: torch.nn.Parameter(value.clone()) for name, value in parameters.items()}
    optimizer = optimizer_of(leaves)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(leaves)
        if backward:
            value.backward()
        return value

    for _ in range(STEPS):
        if not backward:
            optimizer.zero_grad()
        optimizer.step(closure)
    return {name: leaf.detach() for name, leaf in leaves.items()}


def ended(mode: str, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    ours, _ = MODES[mode]
    return trained(lambda leaves: ARS2Neo(leaves.items(), **SHARED, **ours), parameters, backward=True)


def nudged(parameters: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Move each number by a unit of rounding, up or down at random."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.finfo(torch.float64).eps
    signs = {name: torch.randint(0, 2, p.shape, generator=generator) * 2 - 1 for name, p in parameters.items()}
    return {name: p * (1 + unit * signs[name].double()) for name, p in parameters.items()}


@pytest.mark.parametrize("mode", MODES)
def test_twenty_steps_end_where_the_public_optimizer_ends(mode: str) -> None:
    found = ended(mode, start())
    others = [ended(mode, nudged(start(), seed)) for seed in range(4)]
    growth = max(float((other[name] - found[name]).abs().max()) for other in others for name in found)
    assert 0 < STEPS * growth < 1e-7  # a formula that differs shows: the modes are 1e-3 apart
    stored = json.loads((Path(__file__).parent / "public_numbers.json").read_text())[mode]
    for name, value in found.items():
        expected = torch.tensor(stored[name], dtype=torch.float64)
        torch.testing.assert_close(value.flatten(), expected, rtol=0, atol=STEPS * growth)
        assert float((value - start()[name]).norm()) > 0.05  # the parameters did move


def test_the_modes_differ_from_each_other() -> None:
    stored = json.loads((Path(__file__).parent / "public_numbers.json").read_text())
    ends = [torch.tensor(stored[mode]["tall"], dtype=torch.float64) for mode in MODES]
    for i, one in enumerate(ends):
        assert all(float((one - other).norm()) > 1e-3 for other in ends[i + 1 :])
