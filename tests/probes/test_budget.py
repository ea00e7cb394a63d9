"""Cost of a measurement before it is taken: what is timed, what follows from a formula, and what does not fit."""

from __future__ import annotations

import mmap
import sys
import time

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes import CrossEntropy, Objective, ProbeError, budget, hessian, measure_spectrum
from lossscope.probes.budget import price_of
from lossscope.probes.operators.base import SymmetricOperator

SIZE = 2000


def objective() -> Objective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 90), nn.Tanh(), nn.Linear(90, 10))
    return Objective(net, CrossEntropy(), [(torch.randn(30, 20), torch.arange(30) % 10)])


def operator(product: object) -> SymmetricOperator:
    def multiplied(V: Tensor) -> Tensor:
        product()  # type: ignore[operator]
        return V.clone()

    return SymmetricOperator(SIZE, multiplied, dtype=torch.float32, device=torch.device("cpu"))


def fresh_pages() -> None:
    """Touch 128 MiB that no allocator has kept."""
    with mmap.mmap(-1, 2**27) as pages:
        for begin in range(0, 2**27, mmap.PAGESIZE):
            pages[begin] = 1


def test_the_price_is_the_time_of_a_product_and_the_memory_it_takes() -> None:
    slow = price_of(operator(lambda: time.sleep(0.02)))
    assert slow.product_seconds >= 0.02
    assert (slow.parameters, slow.vector_bytes) == (SIZE, 4 * SIZE)
    if sys.platform == "linux":
        large = price_of(operator(fresh_pages))
        assert large.product_bytes is not None
        assert large.product_bytes > 0.8 * 2**27


def test_a_budget_is_the_price_times_the_products() -> None:
    found = budget(objective(), ["top"], top=1, bottom=1, max_products=40)
    assert (found.products, found.least, found.basis) == (40, 4, "whole basis")
    price = found.price
    assert found.seconds == pytest.approx((40 + 2 * 3.5) * price.product_seconds + 40 * 12 * price.sum_seconds)
    assert found.gradients == pytest.approx(found.seconds / found.price.gradient_seconds)
    assert found.bytes >= found.vectors * found.price.vector_bytes
    few, many = (budget(objective(), ["trace"], max_products=count).vectors for count in (40, 80))
    assert many - few == 40  # a basis has as many as products


_WANTED = [("top",), ("top", "trace"), ("trace",), ("density",), ("top", "density"), ("top", "trace", "density")]


@pytest.mark.parametrize("quantities", _WANTED)
def test_as_many_products_are_compared_as_predicted(
    quantities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, measure = [], SymmetricOperator.product_error

    def counted(self: SymmetricOperator, V: Tensor, images: Tensor) -> object:
        compared.append(V.shape[1])
        return measure(self, V, images)

    monkeypatch.setattr(SymmetricOperator, "product_error", counted)
    found = budget(objective(), quantities, top=1, max_products=40)
    measure_spectrum(hessian(objective()), top=1, quantities=quantities, max_products=40, rel=1e-7, trace_rel=1e-7)
    assert 0 <= found.comparisons - sum(compared) <= 1
    assert compared
    assert budget(objective(), quantities, top=1, max_products=40, memory=10 * 4 * 2800).comparisons == 0


@pytest.mark.parametrize(("copies", "basis"), [(400, "whole basis"), (60, "restarted basis"), (8, "three vectors")])
def test_the_mode_is_that_of_the_measurement(copies: int, basis: str) -> None:
    loss = objective()
    one = 4 * loss.size
    wanted = ("top", "trace")
    found = budget(loss, wanted, top=1, bottom=1, max_products=150, memory=copies * one)
    done = measure_spectrum(hessian(loss), top=1, quantities=wanted, max_products=150, memory=copies * one, rel=1e-6)
    assert found.vectors <= copies
    assert found.basis == done.basis == basis
    assert done.products <= found.products + 2  # those that measure rounding


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(ProbeError, match=r"at least 3 vectors .* 33600 bytes, .* at most 2500 parameters"):
        budget(objective(), ["top"], memory=30_000)
    with pytest.raises(ProbeError, match="max_products must be at least"):
        budget(objective(), ["top"], max_products=2)
    with pytest.raises(ProbeError, match=r"unknown quantities \['tops'\]"):
        budget(objective(), ["tops"])
