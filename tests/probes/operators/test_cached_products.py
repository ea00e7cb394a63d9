from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators.cached_products import CachedProducts
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.method import BatchProduct, Method

N = 6
DIAGONAL = torch.arange(1.0, N + 1, dtype=torch.float64)


def diagonal(name: str, *, error: str = "", calls: list[Any] | None = None, **properties: Any) -> Method:
    """Return a method that multiplies by a diagonal matrix, or raises; it records block widths in `calls`."""

    def multiply(rows: Tensor, keep: bool) -> Tensor:
        if error:
            raise RuntimeError(error)
        if calls is not None:
            calls.append(len(rows))
        return rows * DIAGONAL

    return Method(name, lambda objective, at: BatchProduct(multiply, bytes=100), **properties)


def objective(batches: int = 1) -> Objective:
    net = nn.Module()
    net.theta = nn.Parameter(torch.ones(N, dtype=torch.float64))
    return Objective(net, lambda m, x: (m.theta * x).square().sum(), [torch.ones(1)] * batches)


def products(*methods: Method, method: str = "", memory: float = 1e6) -> CachedProducts:
    return CachedProducts(objective(), methods, method=method or methods[0].name, memory=memory)


def assert_right(made: CachedProducts) -> None:
    V = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(made(V), DIAGONAL[:, None] * V)


@pytest.mark.parametrize("caching", [True, False])
def test_where_the_default_method_raises_the_first_fallback_that_works_replaces_it(caching: bool) -> None:
    calls: list[Any] = []
    made = products(
        diagonal("plain", error="no second derivative"),
        diagonal("other", calls=None),
        diagonal("worse", error="nor here", fallback=True),
        diagonal("works", width=8, calls=calls, fallback=True),
        diagonal("last", fallback=True),
    )
    assert (made.facts.method, made.facts.fallback_reason) == ("plain", "")
    for _ in range(2):
        if caching:
            with made.cached():
                assert_right(made)
        else:
            assert_right(made)
        assert made.facts.method == "works"
        assert made.facts.fallback_reason == "plain cannot take products here (RuntimeError: no second derivative)"
    assert set(calls) == {1}  # column by column: no batching rule is needed


def test_a_fallback_that_stops_working_is_replaced_by_the_next() -> None:
    broken: list[str] = []

    def prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
        if broken:
            raise RuntimeError(broken[0])
        return diagonal("").prepare(objective, at)

    made = products(
        diagonal("plain", error="no"), Method("first", prepare, fallback=True), diagonal("second", fallback=True)
    )
    assert_right(made)
    assert made.facts.method == "first"
    broken.append("an operator that forward mode lacks")
    assert_right(made)
    assert made.facts.method == "second"
    assert made.facts.fallback_reason.startswith("first cannot take products here")


def test_where_no_fallback_works_the_first_error_is_raised() -> None:
    broken = products(
        diagonal("plain", error="no second derivative", width=2), diagonal("worse", error="nor here", fallback=True)
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no second derivative"):
            broken(torch.ones(N, 1, dtype=torch.float64))
        assert (broken.facts.method, broken.facts.fallback_reason) == ("plain", "")


def test_a_fallback_whose_check_raises_is_not_used() -> None:
    checked: list[Objective] = []

    def wrong(objective: Objective) -> None:
        checked.append(objective)
        raise ProbeError("silently wrong")

    made = products(
        diagonal("plain", error="no"),
        diagonal("wrong", fallback=True, check=wrong),
        diagonal("right", fallback=True),
    )
    assert_right(made)
    assert made.facts.method == "right"
    assert len(checked) == 1


def test_a_method_that_is_not_the_default_is_never_replaced() -> None:
    methods = diagonal("plain"), diagonal("named", error="no batching rule\nfor this"), diagonal("b", fallback=True)
    made = products(*methods, method="named")
    with pytest.raises(
        ProbeError,
        match=r"method=named cannot take products here \(RuntimeError: no batching rule for this\): use method='plain'",
    ):
        assert_right(made)
    assert made.facts.method == "named"
    assert_right(products(*methods, method="plain"))


@pytest.mark.parametrize(("width", "blocks"), [(1, [1, 1, 1]), (2, [2, 1]), (8, [3])])
def test_columns_are_multiplied_in_blocks_of_the_width_of_the_method(width: int, blocks: list[int]) -> None:
    calls: list[Any] = []
    assert_right(products(diagonal("plain", width=width, calls=calls)))
    assert calls == blocks


def forgetful(method: Method, errors: list[Exception]) -> Method:
    """Return a method that raises each error of the list once."""

    def prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
        if errors:
            raise errors.pop()
        return method.prepare(objective, at)

    return replace(method, prepare=prepare)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_where_memory_runs_out_no_other_method_takes_over(error: Exception) -> None:
    made = products(forgetful(diagonal("plain"), [error]), diagonal("slow", fallback=True))
    with pytest.raises(ProbeError, match=r"out of memory in a product by plain.*1e\+06 bytes.*pass a smaller memory="):
        assert_right(made)
    assert_right(made)
    assert made.facts.method == "plain"


class Cube(torch.autograd.Function):
    """The third power; it has no second derivative, and its rule for forward mode has a mistake."""

    factor = 2.0  # 3 is right

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return CubeSlope.apply(ctx.saved_tensors[0], slope)

    @classmethod
    def jvp(cls, ctx: Any, tangent: Tensor) -> Tensor:
        return cls.factor * ctx.saved_tensors[0] ** 2 * tangent


class RightCube(Cube):
    """The third power, whose rule for forward mode is right."""

    factor = 3.0


class CubeSlope(torch.autograd.Function):
    """The derivative of the third power, which can be differentiated in forward mode only."""

    @staticmethod
    def forward(x: Tensor, slope: Tensor) -> Tensor:
        return 3 * x**2 * slope

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        raise NotImplementedError("no second derivative")

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor, slope_tangent: Tensor) -> Tensor:
        x, slope = ctx.saved_tensors
        return 6 * x * slope * x_tangent + 3 * x**2 * slope_tangent


class Acting(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


@pytest.mark.parametrize(("act", "method"), [(RightCube.apply, "forward"), (Cube.apply, "differences")])
def test_forward_mode_takes_over_only_where_it_agrees_with_differences(
    act: Callable[[Tensor], Tensor], method: str
) -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    given, known = (Objective(Acting(a), lambda m, b: m(b).square().mean(), [x]) for a in (act, lambda t: t**3))
    v = torch.linspace(-1, 1, given.size)
    expected = hessian(known) @ v
    if method == "forward":
        torch.testing.assert_close(hessian(given, method="forward") @ v, expected, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(
            ProbeError, match=r"method=forward cannot .+ a product with the Hessian by method='forward'"
        ):
            hessian(given, method="forward") @ v
    H = hessian(given)
    torch.testing.assert_close(H @ v, expected, rtol=1e-4, atol=1e-5)
    assert H.method == method
    assert H.fallback_reason.startswith("reverse cannot take products here")


@pytest.mark.parametrize("make", [hessian, gauss_newton])
def test_every_exact_method_of_a_network_gives_the_same_products(make: Any, make_case: Any) -> None:
    of = make_case("mlp").objective()
    V = torch.randn(of.size, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = make(of) @ V
    for method in ("batched", "forward", *(["linearize"] if make is hessian else [])):
        operator = make(of, method=method)
        with operator.cached():
            torch.testing.assert_close(operator @ V, expected, rtol=1e-9, atol=1e-12)
        assert operator.method == method
