"""Inner products and norms of long vectors: known sums, every dtype, and devices without float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lossscope.probes import sums

NUMBER = float(torch.tensor(0.1))  # 0.1 in float32
LONG = 10**7


@pytest.fixture(params=["float64", "compensated"])
def device_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the kind of the sums; the compensated ones are forced on the CPU."""
    if request.param == "compensated":
        monkeypatch.setattr(sums, "_NARROW", {"cpu"})
    return str(request.param)


@pytest.mark.parametrize(
    "length", [LONG, pytest.param(10 * LONG, marks=pytest.mark.slow)], ids=["ten million", "hundred million"]
)
def test_a_long_float32_sum_is_right_where_torch_is_off_by_a_hundredth(length: int, device_kind: str) -> None:
    x = torch.full((length,), 0.1)
    true = length * NUMBER**2
    assert float(sums.dot(x, x)) == pytest.approx(true, rel=1e-12)
    assert float(sums.norm(x)) == pytest.approx(math.sqrt(true), rel=1e-12)
    assert abs(float(torch.linalg.vector_norm(x)) ** 2 / true - 1) > 0.01


def test_a_long_alternating_sum_cancels_exactly(device_kind: str) -> None:
    x = torch.full((LONG // 10,), 0.1)
    y = torch.where(torch.arange(len(x)) % 2 == 0, 3.0, -3.0)
    y[0] += 1
    assert float(sums.dot(x, y)) == pytest.approx(NUMBER, rel=1e-9)


def rows(count: int, length: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(dtype)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "dot": (lambda a, b: sums.dot(a[:2], b), lambda a, b: (a[:2] * b).sum()),
    "norm": (lambda a, b: sums.norm(a), lambda a, b: a.square().sum().sqrt()),
    "norms": (lambda a, b: torch.stack(sums.norms([a, b])), lambda a, b: torch.stack([a.norm(), b.norm()])),
    "row_norms": (lambda a, b: sums.row_norms(a), lambda a, b: a.square().sum(1).sqrt()),
    "columns": (lambda a, b: sums.row_norms(a.mT), lambda a, b: a.square().sum(0).sqrt()),
    "row_dots": (lambda a, b: sums.row_dots(a[:2], b), lambda a, b: (a[:2] * b).sum(1)),
    "gram": (lambda a, b: sums.gram(a, b), lambda a, b: a @ b.mT),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 7, 50_001])
def test_sums_are_those_of_float64(form: str, length: int, dtype: torch.dtype) -> None:
    a, b = rows(3, length, dtype), rows(2, length, dtype, seed=1)
    found, wanted = FORMS[form][0](a, b), FORMS[form][1](a.double(), b.double())
    assert found.dtype == torch.float64
    by_blocks = (form, dtype, length) == ("gram", torch.float32, 50_001)
    lengths = float(a.double().norm(dim=1).max() * b.double().norm(dim=1).max())
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-8 * lengths if by_blocks else 1e-10)


@pytest.mark.parametrize("value", [0.1, 1.0, -3.3])
def test_inner_products_of_equal_numbers_in_blocks_are_within_a_few_rounding_units(value: float) -> None:
    a = torch.full((2, 300_000), value)
    wanted = 300_000 * float(a[0, 0]) ** 2
    assert sums.gram(a, a).tolist() == [[pytest.approx(wanted, rel=8 * torch.finfo(torch.float32).eps)] * 2] * 2


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e25])
def test_inner_products_beyond_the_range_of_float32_are_those_of_float64(size: float) -> None:
    a = rows(3, 50_001, torch.float32) * size
    wanted = a.double() @ a.double().mT
    assert torch.allclose(sums.gram(a, a), wanted, rtol=1e-10, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_compensated_sums_are_those_of_float64_at_every_scale(
    form: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "_NARROW", {"cpu"})
    a, b = rows(3, 4_001, torch.float32) * size, rows(2, 4_001, torch.float32, seed=1) / 3
    found, wanted = FORMS[form][0](a, b), FORMS[form][1](a.double(), b.double())
    largest = float(wanted.abs().max())
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-10 * largest)


def test_no_more_than_one_chunk_is_converted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    longest, chunks = 0, sums._chunks

    def watched(left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal longest
        for a, b in chunks(left, right):
            longest = max(longest, a.numel(), b.numel())
            yield a, b

    monkeypatch.setattr(sums, "_chunks", watched)
    sums.gram(torch.ones(2, 400_000).bfloat16(), torch.ones(5, 400_000).bfloat16())
    assert 0 < longest <= 2**18


@pytest.mark.parametrize(
    ("dtype", "narrow"), [(torch.float32, set()), (torch.float32, {"cpu"}), (torch.float64, set())], ids=str
)
def test_a_projection_leaves_nothing_of_the_basis(
    dtype: torch.dtype, narrow: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums, "_NARROW", narrow)
    basis = torch.linalg.qr(rows(4, 3_000, dtype).mT)[0].mT.contiguous()
    given = rows(2, 3_000, dtype, seed=1)
    rest, coordinates = sums.without(given, basis)
    assert rest.dtype == dtype
    assert torch.allclose(coordinates, given.double() @ basis.double().mT, atol=1e-12)
    assert float((rest.double() @ basis.double().mT).abs().max()) < 100 * torch.finfo(dtype).eps


def test_empty_and_zero_vectors_have_norm_zero(device_kind: str) -> None:
    for x, two in itertools.product([torch.zeros(5)], [False, True]):
        assert float(sums.norm(x)) == 0.0
        assert sums.row_norms(x.expand(2, 5) if two else x[None]).tolist() == [0.0] * (1 + two)
    assert float(sums.norm(torch.zeros(0))) == 0.0


def test_sums_take_no_part_in_a_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    for found in (sums.dot(x, x), sums.norm(x), sums.gram(x[None], x[None]), *sums.norms([x])):
        assert not found.requires_grad
