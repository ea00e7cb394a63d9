"""Members of the zoo on a CUDA card: loss, gradient, product and largest eigenvalue are those of the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lossscope.probes import ProbeError, hessian, measure_spectrum
from zoo import MEMBERS, Member, Parts

CARD = torch.cuda.is_available()
ON_CARD = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in MEMBERS] if CARD else []
DIFFERENCE = 2e3  # largest relative difference, in rounding units of the member


def moved(parts: Parts, device: str) -> Parts:
    """Return the parts on a device."""
    for module in (parts.model, *parts.reaches):
        module.to(device)
    batches = [tree_map(lambda one: one.to(device) if isinstance(one, Tensor) else one, b) for b in parts.batches]
    return Parts(parts.model, parts.loss_fn, batches, parts.reaches)


def numbers(member: Member, device: str) -> dict[str, Tensor]:
    """Return loss, gradient and a Hessian product of a member on a device."""
    objective = member.objective(moved(member.build(), device))
    v = torch.randn(objective.size, generator=torch.Generator().manual_seed(1)).to(device, objective.dtype)
    found = {"loss": torch.tensor(objective.value()), "gradient": objective.gradient()}
    try:
        found["product"] = hessian(objective) @ v
    except ProbeError:
        if member.refusal("hessian") is None:
            raise
    return {name: one.detach().cpu().double() for name, one in found.items()}


@pytest.fixture
def exact() -> Iterator[None]:
    """Take products in full float32 on the card."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if CARD else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("device", "name"), [("cpu", "mlp_double"), ("cpu", "resnet"), *ON_CARD])
def test_numbers_on_a_device_are_those_of_the_cpu(device: str, name: str) -> None:
    member = MEMBERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about kernels
        known, found = numbers(member, "cpu"), numbers(member, device)
    assert found.keys() == known.keys()
    for key, value in known.items():
        apart = float((found[key] - value).norm()) / max(float(value.norm()), 1e-6)
        assert apart <= DIFFERENCE * member.digits, f"{key} differs by {apart:.1e}"


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("device", "name"), [("cpu", "mlp_double"), *(one for one in ON_CARD if "gpt" in one.values)])
def test_bounds_on_a_device_contain_the_eigenvalue_of_the_cpu(device: str, name: str) -> None:
    def top(where: str) -> Any:
        objective = MEMBERS[name].objective(moved(MEMBERS[name].build(), where))
        found = measure_spectrum(hessian(objective), top=1, quantities=("top",), rel=0.01).top
        assert found is not None
        return found.estimate()

    known, found = top("cpu"), top(device)
    assert found.low <= known.high
    assert known.low <= found.high
    assert found.value == pytest.approx(known.value, rel=0.02)
