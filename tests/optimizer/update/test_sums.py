"""Norms and inner products: known sums over long vectors, layouts, scales, and the branch without float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lossscope.optimizer import ARS2Neo, create
from lossscope.optimizer.update import sums

# Rounding of the inputs' squares in float64, added over chunks; compensated float32 ends in one rounding of its own.
WIDE, COMPENSATED = 1e-12, 3e-7
LENGTHS = [1000, 10**7, pytest.param(10**8, marks=pytest.mark.slow)]


@pytest.fixture(params=["float64", "float64 of an accelerator", "compensated float32"])
def tolerance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    if request.param != "float64":
        monkeypatch.setattr(sums, "_READ_AT_ONCE", frozenset())
    if request.param != "compensated float32":
        return WIDE
    monkeypatch.setattr(sums, "_WITHOUT_FLOAT64", frozenset({"cpu"}))
    return COMPENSATED


def shortened(length: int, tolerance: float) -> int:
    """Return a tenth of the middle length where sums are compensated, which takes seconds."""
    return 10**6 if (length, tolerance) == (10**7, COMPENSATED) else length


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(found: sums.Number, expected: float, tolerance: float, roundings: int = 1) -> None:
    if sums.read_at_once(torch.zeros(())):
        assert isinstance(found, float)
    else:  # nothing waits for an accelerator
        assert isinstance(found, Tensor)
        assert found.shape == ()
        assert found.dtype == (torch.float64 if tolerance == WIDE else torch.float32)
    assert abs(float(found) / expected - 1) < roundings * tolerance


@pytest.mark.parametrize("length", LENGTHS)
def test_a_long_vector_of_equal_numbers_has_the_norm_on_paper(length: int, tolerance: float) -> None:
    length = shortened(length, tolerance)
    x = torch.full((length,), 0.1)
    expected = math.sqrt(length) * float(x[0])
    assert_near(sums.norm(x), expected, tolerance)
    assert_near(sums.norm(x[: length // 3], x[length // 3 :]), expected, tolerance)
    if length >= 10**7:  # what this module is for
        assert abs(float(torch.linalg.vector_norm(x)) / expected - 1) > 1e-4  # in float32


@pytest.mark.parametrize("length", LENGTHS)
def test_share_and_cosine_of_long_vectors_are_those_on_paper(length: int, tolerance: float) -> None:
    length = shortened(length, tolerance)
    x, y = torch.full((length,), 0.1), torch.full((length,), 0.7)
    y[: length // 2] = -0.3
    # both are exact in the numbers that the tensors hold
    a, low, high = float(x[0]), float(y[0]), float(y[-1])
    overlap, square = a * (low + high) / 2, (low**2 + high**2) / 2
    assert_near(sums.share([x], [y], 0.0), overlap / square, tolerance, 4)
    assert_near(sums.cosine([x], [y], 0.0), overlap / (a * math.sqrt(square)), tolerance, 4)


@pytest.mark.parametrize("scale", [1e-36, 1e-30, 1.0, 1e30])
def test_the_square_of_a_float32_number_stays_in_range(scale: float, tolerance: float) -> None:
    x = torch.full((300,), scale)
    assert_near(sums.norm(x), math.sqrt(300) * float(x[0]), tolerance)
    assert_near(sums.share([x], [x], 0.0), 1.0, tolerance)


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e200, 1e307])
def test_float64_is_scaled_by_a_power_of_two(scale: float) -> None:
    x = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
    assert float(sums.norm(x)) == pytest.approx(float(x[0]) / 3 * 5, rel=1e-15)
    assert float(sums.share([x], [x], 0.0)) == 1.0
    assert float(sums.cosine([x], [-x], 0.0)) == pytest.approx(-1.0, rel=1e-15)


LAYOUTS = {
    "transposed": lambda x: x.reshape(300, 400).T,
    "channels last": lambda x: x.reshape(50, 24, 10, 10).to(memory_format=torch.channels_last),
    "every second": lambda x: torch.stack([x, x + 1], 1)[:, 0],
    "columns": lambda x: torch.cat([x.reshape(1000, 120)] * 2, 1)[:, :120],
}


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_the_layout_in_memory_does_not_matter(lay, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_CHUNK", 1000)
    x, y = normal(120_000), normal(120_000, seed=1)
    a = lay(x)
    flat = a.double().flatten()
    assert_near(sums.norm(a), math.sqrt(float(flat @ flat)), tolerance)
    other = y.reshape(a.shape)  # contiguous, beside a tensor that is not
    expected = float(flat @ y.double()) / float(y.double() @ y.double())
    assert abs(float(sums.share([a], [other], 0.0)) - expected) < tolerance


def test_no_more_than_a_chunk_is_converted_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sums, "_CHUNK", 100)
    monkeypatch.setattr(sums, "_converted", lambda x, size, index=0: seen.append(x.numel()) or x.double())
    sums.share([normal(30, 40).T], [normal(40, 30)], 0.0)
    assert max(seen) <= 100
    assert sum(seen) == 2 * 1200  # each number once


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (40, 5, 7), (3, 30, 50)])
def test_slice_norms_are_those_of_each_matrix(shape, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_CHUNK", 100)
    X = normal(*shape)
    expected = torch.linalg.matrix_norm(X.double(), keepdim=True)
    torch.testing.assert_close(sums.slice_norms(X).double(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("shape", [(5, 7), (40, 5), (3, 30, 50), (2, 150)])
def test_row_norms_are_those_of_each_row(shape, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_CHUNK", 100)
    X = normal(*shape)
    expected = X.double().square().sum(-1, keepdim=True).sqrt()
    torch.testing.assert_close(sums.row_norms(X).double(), expected, rtol=tolerance, atol=0)


def test_a_share_comes_with_the_norm_of_what_it_is_a_share_of(tolerance: float) -> None:
    x, y = [normal(300)], [normal(300, seed=1)]
    share, size = sums.share_and_norm(x, y, 0.0)
    assert share == sums.share(x, y, 0.0)
    assert_near(size, math.sqrt(float(y[0].double() @ y[0].double())), tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_combination_is_rounded_once_in_half_precision(dtype: torch.dtype) -> None:
    x, y = normal(300).to(dtype), normal(300, seed=1).to(dtype)
    found = sums.combined(x, 0.3, y, -1.7)
    assert found.dtype == dtype
    expected = 0.3 * x.double() - 1.7 * y.double()
    size = 0.3 * x.double().abs() + 1.7 * y.double().abs()
    assert float(((found.double() - expected).abs() / size).max()) < torch.finfo(dtype).eps


def test_tensors_without_elements_add_nothing() -> None:
    none, x = torch.zeros(0, 3), torch.tensor([3.0, 4.0])
    assert float(sums.norm(none)) == 0
    assert float(sums.norm(none, x)) == 5
    assert float(sums.share([none, x], [none, x], 0.0)) == 1


def test_zeros_have_norm_zero_and_share_nothing(tolerance: float) -> None:
    zero = torch.zeros(4)
    assert float(sums.norm(zero)) == 0
    assert float(sums.share([zero], [zero], 1e-12)) == 0
    assert float(sums.cosine([zero], [zero], 1e-12)) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_shows(value: float, tolerance: float) -> None:
    assert not math.isfinite(float(sums.norm(torch.tensor([1.0, value]))))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_factor_beyond_the_range_leaves_zeros_zero(dtype: torch.dtype) -> None:
    x, factor = torch.tensor([0.0, 1e-3], dtype=dtype), torch.tensor(1e300, dtype=torch.float64)
    assert float(sums.times(x, factor)[0]) == 0
    assert float(sums.plus(x, x, factor)[0]) == 0
    one = torch.tensor(2.0, dtype=torch.float64)
    assert sums.times(x[1], one).dtype == dtype  # a 0-d float64 factor does not widen a 0-d tensor
    assert float(sums.times(x, one)[1]) == 2 * float(x[1])


def test_a_ratio_to_nothing_is_zero() -> None:
    assert float(sums.ratio(torch.tensor(2.0), torch.tensor(0.0), torch.float32)) == 0
    assert float(sums.ratio(torch.tensor(1e300).double(), torch.tensor(1e-300).double(), torch.float32)) < math.inf


@pytest.mark.parametrize("length", [3_000_000, pytest.param(30_000_000, marks=pytest.mark.slow)])
def test_an_ascent_over_a_long_vector_has_the_radius_that_was_asked(length: int) -> None:
    w = torch.nn.Parameter(torch.zeros(length))
    optimizer = create("sam", [("w", w)], rho=0.5)
    moves = []
    optimizer.observe(lambda record: moves.append(record.tensors[0].perturbation))
    for _ in optimizer.passes():
        w.grad = torch.full((length,), 0.1)
    optimizer.step()
    # the factor and each product are rounded to float32
    assert float(sums.norm(moves[0])) == pytest.approx(0.5, rel=2e-7)


def test_the_shear_of_a_long_vector_is_orthogonal_to_the_gradient() -> None:
    length = 1_000_000
    w = torch.nn.Parameter(torch.ones(length // 1000, 1000))
    optimizer = ARS2Neo([("w", w)], mode="lazy", k=2)
    shears = []
    optimizer.observe(lambda record: shears.append(record.tensors[0].shear))
    gradient = torch.full((length // 1000, 1000), 0.1)
    for p in optimizer.passes():
        w.grad = gradient.clone() if p.index == 0 else gradient + 0.01 * normal(length // 1000, 1000)
    optimizer.step()
    assert abs(float(sums.cosine([shears[0]], [gradient], 0.0))) < 1e-6
