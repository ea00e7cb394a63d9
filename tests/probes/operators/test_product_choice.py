from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.evaluation import BatchEvaluation
from lossscope.probes.objective.losses import CrossEntropy
from lossscope.probes.objective.objective import Objective
from lossscope.probes.operators import (
    cached_products as held_products,
    gradient_time,
    product_choice,
    timing as product_trial,
)
from lossscope.probes.operators.cached_products import CachedProducts
from lossscope.probes.operators.gauss_newton import gauss_newton
from lossscope.probes.operators.hessian import hessian
from lossscope.probes.operators.method import BatchProduct, Method
from lossscope.probes.operators.product_choice import signature
from lossscope.probes.operators.timing import Trial

N = 6
DIAGONAL = torch.arange(1.0, N + 1, dtype=torch.float64)


class Clock:
    """Time that passes only where a method says so."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.prepared: list[str] = []
        self.columns: dict[str, int] = {}

    def __call__(self, _: Any = None) -> float:
        return self.seconds

    def method(
        self,
        name: str,
        column: float,
        *,
        setup: float = 0.0,
        wide: float = 0.0,
        wrong: float = 0.0,
        error: str = "",
        size: int = 100,
        **facts: Any,
    ) -> Method:
        """Products with a diagonal matrix: `setup` seconds once, `wide` for each block and `column` for each column."""

        def multiply(rows: Tensor, keep: bool) -> Tensor:
            if error:
                raise RuntimeError(error)
            self.seconds += wide + column * len(rows)
            self.columns[name] = self.columns.get(name, 0) + len(rows)
            found = rows * DIAGONAL
            found[-1, 0] += wrong * float(rows.norm())  # in the last row only
            return found

        def prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
            self.seconds += setup
            self.prepared.append(name)
            return BatchProduct(multiply, bytes=size)

        return Method(name, prepare, **facts)


@pytest.fixture(name="clock")
def a_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(product_choice, "_MEASURED", {})
    monkeypatch.setattr(product_trial, "_LOADED", set())
    monkeypatch.setattr(gradient_time, "_LEAST", {})
    for module in (product_choice, product_trial, held_products, gradient_time):
        monkeypatch.setattr(module, "now", clock)
    return clock


def objective(batches: int = 1) -> Objective:
    net = nn.Module()
    net.theta = nn.Parameter(torch.ones(N, dtype=torch.float64))
    return Objective(net, lambda m, x: (m.theta * x).square().sum(), [torch.ones(1)] * batches)


def products(*methods: Method, batches: int = 1, memory: float = 1e6, matrix: str = "test") -> CachedProducts:
    return CachedProducts(matrix, objective(batches), methods, method="auto", memory=memory)


def used(made: CachedProducts, expected: int | None) -> tuple[str, int]:
    """What a job of so many products would use, after one product that must be right."""
    V = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with made.cached(expected):
        choice = made.facts.choice
        torch.testing.assert_close(made(V), DIAGONAL[:, None] * V)
    assert choice is not None
    return choice.method, choice.width


@pytest.mark.parametrize("expected", [None, 0, 1, 29])
def test_below_30_products_a_rule_decides_and_nothing_is_measured(expected: int | None, clock: Clock) -> None:
    made = products(clock.method("plain", 1.0), clock.method("fast", 0.1))
    assert used(made, expected) == ("plain", 1)
    assert clock.prepared == ["plain"]
    assert made.facts.choice.why.startswith("by rule")
    assert (made.facts.choice.trials, made.facts.choice.seconds) == ((), 0.0)


def test_a_faster_method_wins_where_it_was_measured_and_is_remembered(clock: Clock) -> None:
    methods = clock.method("plain", 1.0, setup=0.5), clock.method("fast", 0.2, setup=0.1, widths=(1,))
    made = products(*methods)
    assert used(made, 200) == ("fast", 1)
    choice = made.facts.choice
    assert choice.why == "measured: takes 0.20 of the time of plain"
    assert [(t.method, t.setup_seconds, t.column_seconds) for t in choice.trials] == [
        ("plain", 0.5, 1.0),
        ("fast", pytest.approx(0.1), pytest.approx(0.2)),
    ]
    assert choice.seconds == pytest.approx((0.5 + 2) + (0.5 + 1) + 0.1 + 3 * 0.2)
    clock.prepared.clear()
    again = products(*methods)
    for expected in (200, None, 5, 10**6):
        assert used(again, expected) == ("fast", 1)
        assert again.facts.choice.seconds == 0.0
    # nothing is measured twice in a process, but that the method is right is looked at once for each objective
    assert clock.prepared.count("plain") == 1
    assert set(clock.prepared) == {"plain", "fast"}
    assert used(products(*methods, matrix="another"), None) == ("plain", 1)


@pytest.mark.parametrize(("column", "winner"), [(0.82, "plain"), (0.78, "other")])
def test_a_gain_that_may_be_the_clocks_is_no_reason_to_leave_the_plain_method(
    column: float, winner: str, clock: Clock
) -> None:
    made = products(clock.method("plain", 1.0), clock.method("other", column))
    assert used(made, 10**4) == (winner, 1)
    why = f"the best of the others, other, takes {column} of its time"
    assert made.facts.choice.why == f"measured: {why if winner == 'plain' else f'takes {column} of the time of plain'}"
    alone = products(clock.method("plain", 1.0), clock.method("slow", 2.0), matrix="another")
    assert used(alone, 10**4) == ("plain", 1)
    assert alone.facts.choice.why == "measured: the cheapest of 2"


@pytest.mark.parametrize("late", ["plain", "other"])
@pytest.mark.parametrize("runs", [1, 2])
def test_the_faster_of_two_warm_runs_counts(late: str, runs: int, clock: Clock) -> None:
    """A run that the machine held up decides nothing, be it the first or the second."""

    def held_up(method: Method) -> Method:
        seen: list[int] = []

        def prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
            made = method.prepare(objective, at)

            def multiply(rows: Tensor, keep: bool) -> Tensor:
                seen.append(len(rows))
                clock.seconds += 10.0 if len(seen) <= runs else 0.0
                return made.multiply(rows, keep)

            return replace(made, multiply=multiply)

        return replace(method, prepare=prepare)

    methods = [clock.method("plain", 1.0, setup=0.5), clock.method("other", 0.9)]
    made = products(*[held_up(method) if method.name == late else method for method in methods])
    assert used(made, 10**4) == ("plain", 1)
    found = {trial.method: trial.column_seconds for trial in made.facts.choice.trials}
    assert found == {"plain": pytest.approx(1.0), "other": pytest.approx(0.9)}


@pytest.mark.parametrize(("is_gradient", "expected"), [(False, 2000), (True, 60)])
def test_a_slow_first_preparation_of_the_plain_method_does_not_count(
    is_gradient: bool, expected: int, clock: Clock
) -> None:
    plain, seen = clock.method("plain", 1.0, setup=0.5, is_gradient=is_gradient), []

    def slow_at_first(objective: Objective, at: BatchEvaluation) -> BatchProduct:
        clock.seconds += 0.0 if seen else 60.0
        seen.append(1)
        return plain.prepare(objective, at)

    made = products(replace(plain, prepare=slow_at_first), clock.method("other", 0.9))
    assert used(made, expected) == ("plain", 1)
    setups = [trial.setup_seconds for trial in made.facts.choice.trials]
    assert setups == [pytest.approx(1.0 if is_gradient else 0.5), 0.0]  # no more than a product, or seen again


def test_where_a_tenth_of_the_job_is_too_little_nothing_is_timed_again(clock: Clock) -> None:
    made = products(clock.method("plain", 1.0, setup=0.5), clock.method("other", 0.5))
    assert used(made, 50) == ("other", 1)
    assert clock.prepared[:2] == ["plain", "other"]
    assert made.facts.choice.seconds <= 0.1 * 50.5


@given(
    st.integers(1, 10**5),
    st.lists(st.tuples(st.floats(0.01, 20), st.floats(0, 300), st.floats(0, 3)), max_size=4),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_measuring_takes_a_tenth_of_the_plain_job_at_most_and_the_cheapest_wins(
    clock: Clock, expected: int, costs: list[tuple[float, float, float]], batches: int
) -> None:
    product_choice._MEASURED.clear()
    product_trial._LOADED.clear()
    others = [
        clock.method(f"other{i}", column, setup=setup, wide=wide, widths=(2, 8), node_seconds=0.0, first_seconds=setup)
        for i, (column, setup, wide) in enumerate(costs)
    ]
    plain = clock.method("plain", 10.0, setup=5.0)
    made = products(plain, *others, batches=batches)
    with made.cached(expected):
        choice = made.facts.choice
    assert choice.seconds <= 0.1 * batches * (5.0 + 10.0 * expected) + 1e-9
    cheapest = min((batches * (t.setup_seconds + expected * t.column_seconds) for t in choice.trials), default=math.inf)
    mine = [t for t in choice.trials if (t.method, t.width) == (choice.method, choice.width)]
    if mine:
        assert batches * (mine[0].setup_seconds + expected * mine[0].column_seconds) <= cheapest / 0.8 + 1e-9


@pytest.mark.parametrize("wrong", [1e-5, 1e-2, 1.0, math.nan])
def test_a_silently_wrong_method_cannot_win(wrong: float, clock: Clock) -> None:
    lying = clock.method("lying", 0.01, wrong=wrong, widths=(2, 8))
    made = products(clock.method("plain", 1.0), lying, clock.method("slow", 3.0))
    assert used(made, 10**5) == ("plain", 1)
    refused = {t.method: t.refused for t in made.facts.choice.trials}
    assert refused["lying"].startswith("its product differs from that of plain by ")
    assert not refused["slow"]
    assert sum(t.method == "lying" for t in made.facts.choice.trials) == 1  # the wider block is not even tried


@pytest.mark.parametrize("wrong", [0.35, math.nan])
@pytest.mark.parametrize("width", [1, 2])
def test_what_was_measured_for_one_objective_may_be_wrong_for_another(width: int, wrong: float, clock: Clock) -> None:
    """Two models of one signature may be two functions; costs are remembered, not that a method is right."""

    def methods(wrong: float) -> tuple[Method, ...]:
        return clock.method("plain", 1.0), clock.method("fast", 0.2, wrong=wrong, widths=(width,))

    assert used(products(*methods(0.0)), 200) == ("fast", width)
    other = objective()
    made = CachedProducts("test", other, methods(wrong), method="auto", memory=1e6)
    assert used(made, 200) == ("fast", width)  # and the product is right all the same
    assert (made.facts.method, made.facts.width) == ("plain", 1)
    assert "fast cannot take products here (_WrongProductError: its product differs from" in made.facts.choice.why
    again = CachedProducts("test", other, methods(wrong), method="auto", memory=1e6)
    assert used(again, 200) == ("plain", 1)  # once is enough
    assert used(products(*methods(0.0)), 200) == ("fast", width)  # a third model has nothing to do with it


class Cube(torch.autograd.Function):
    """The third power, whose rule for forward mode has a mistake."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * slope

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] ** 2 * tangent


class Acting(nn.Module):
    """A network whose class does not tell what it computes."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.first(x)))


def test_a_function_with_a_wrong_forward_rule_is_found_out_behind_a_remembered_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    right, wrong = (Objective(Acting(act), lambda m, b: m(b).square().mean(), [x]) for act in (torch.tanh, Cube.apply))
    costs = {(name, 1): Trial(name, 1, cost, cost) for name, cost in (("reverse", 1.0), ("forward", 0.1))}
    monkeypatch.setattr(product_choice, "_MEASURED", {signature("hessian", right): costs})
    assert signature("hessian", right) == signature("hessian", wrong)
    v = torch.linspace(-1, 1, right.size)
    assert float((hessian(wrong, method="forward") @ v - hessian(wrong, method="reverse") @ v).norm()) > 0.1
    for of, method in ((right, "forward"), (wrong, "reverse")):
        H = hessian(of)
        with H.cached(5):
            torch.testing.assert_close(H @ v, hessian(of, method="reverse") @ v, rtol=1e-4, atol=1e-5)
        assert H.method == method


def test_outside_held_the_rule_holds_again(clock: Clock) -> None:
    made = products(clock.method("plain", 1.0), clock.method("dear", 0.2, setup=50.0, widths=(1,)))
    assert used(made, 10**4) == ("dear", 1)
    assert made.facts.method == "dear"  # what took the products so far
    clock.prepared.clear()
    made(torch.ones(N, 2, dtype=torch.float64))
    assert clock.prepared == ["plain"]
    assert (made.facts.method, made.facts.choice.why) == ("plain", "by rule: nothing is measured for a few products")
    assert used(made, 10**4) == ("dear", 1)


def forgetful(method: Method, full: list[Exception]) -> Method:
    """A method that raises what is in the list, once."""

    def prepare(objective: Objective, at: BatchEvaluation) -> BatchProduct:
        if full:
            raise full.pop()
        return method.prepare(objective, at)

    return replace(method, prepare=prepare)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("expected", [None, 200])
def test_where_memory_runs_out_no_other_method_takes_over(expected: int | None, error: Exception, clock: Clock) -> None:
    made = products(forgetful(clock.method("plain", 1.0), [error]), clock.method("slow", 2.0))
    with pytest.raises(ProbeError, match=r"memory ran out in a product by plain.*1e\+06 bytes.*pass a smaller memory="):
        used(made, expected)
    assert used(made, expected) == ("plain", 1)
    assert made.facts.method == "plain"


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_ran_out_in_a_trial_is_not_held_against_a_method_for_ever(error: Exception, clock: Clock) -> None:
    methods = clock.method("plain", 1.0), forgetful(clock.method("fast", 0.2), [error])
    made = products(*methods)
    assert used(made, 1000) == ("plain", 1)
    assert [bool(t.refused) for t in made.facts.choice.trials] == [False, True]
    assert used(products(*methods), 1000) == ("fast", 1)


def test_a_method_that_raises_is_passed_over_and_the_reason_is_kept(clock: Clock) -> None:
    broken = clock.method("broken", 0.01, error="no batching rule\nfor this")
    made = products(clock.method("plain", 1.0), broken, clock.method("fast", 0.5))
    assert used(made, 1000) == ("fast", 1)
    refused = {t.method: t.refused for t in made.facts.choice.trials}
    assert refused["broken"] == "RuntimeError: no batching rule for this"


def test_a_set_up_must_be_earned_back(clock: Clock) -> None:
    methods = clock.method("plain", 1.0), clock.method("dear", 0.5, setup=100.0)
    assert used(products(*methods), 10**5) == ("dear", 1)
    for expected, best in ((100, "plain"), (199, "plain"), (330, "plain"), (340, "dear"), (None, "plain")):
        assert used(products(*methods), expected) == (best, 1)


def test_a_set_up_that_memory_cannot_keep_is_paid_for_each_product(clock: Clock) -> None:
    methods = clock.method("plain", 1.0, setup=2.0), clock.method("bare", 1.5, size=0)
    assert used(products(*methods, memory=50), 10**4) == ("bare", 1)
    assert used(products(*methods, memory=200), 10**4) == ("plain", 1)


def test_the_width_is_that_which_is_cheapest_for_each_column(clock: Clock) -> None:
    made = products(clock.method("plain", 1.0), clock.method("wide", 0.1, wide=1.6, widths=(2, 8)))
    assert used(made, 1000) == ("wide", 8)
    assert made.facts.width == 8
    # three trials of 2 and of 8 columns, and a block of three as it is
    assert clock.columns["wide"] == 3 * 2 + 3 * 8 + 3


def test_what_is_too_dear_to_try_stays_untried_until_a_larger_job(clock: Clock) -> None:
    methods = clock.method("plain", 1.0), clock.method("dear", 0.1, setup=100.0, first_seconds=100.0)
    assert used(products(*methods), 500) == ("plain", 1)
    assert "dear" not in clock.prepared
    before = list(clock.prepared)
    assert used(products(*methods), 500) == ("plain", 1)
    assert clock.prepared == [*before, "plain"]  # and the plain method is not measured again for nothing
    assert used(products(*methods), 5000) == ("dear", 1)


def test_a_first_run_that_had_to_load_something_is_not_taken_for_its_cost(clock: Clock) -> None:
    loading = clock.method("loading", 0.1)
    prepare, first = loading.prepare, []

    def slow_at_first(objective: Objective, at: BatchEvaluation) -> BatchProduct:
        made = prepare(objective, at)

        def multiply(rows: Tensor, keep: bool) -> Tensor:
            clock.seconds += 0.0 if first else 50.0
            first.append(1)
            return made.multiply(rows, keep)

        return replace(made, multiply=multiply)

    methods = clock.method("plain", 1.0), replace(loading, prepare=slow_at_first)
    assert used(products(*methods), 100) == ("plain", 1)
    assert used(products(*methods), 100) == ("loading", 1)


def test_where_the_plain_method_fails_in_the_middle_another_takes_over(clock: Clock) -> None:
    methods = clock.method("plain", 1.0, error="no second derivative"), clock.method("other", 5.0)
    for expected in (None, 1000):
        made = products(*methods)
        assert used(made, expected)[0] == "plain"
        assert (made.facts.method, made.facts.width) == ("other", 1)
        assert made.facts.choice.why == "plain cannot take products here (RuntimeError: no second derivative)"
        assert used(made, expected)[0] == "other"
    broken = products(methods[0], clock.method("worse", 1.0, error="nor here"))
    with pytest.raises(RuntimeError, match="no second derivative"):
        broken(torch.ones(N, 1, dtype=torch.float64))
    assert broken.facts.method == "plain"


def network(width: int = 8, rows: int = 12, act: type[nn.Module] = nn.Tanh, **how: Any) -> Objective:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, width), act(), nn.Linear(width, 3))
    generator = torch.Generator().manual_seed(0)
    return Objective(net, CrossEntropy(), [(torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3)], **how)


def test_what_was_measured_counts_under_the_same_circumstances_only() -> None:
    base = signature("hessian", network())
    assert signature("hessian", network()) == base
    frozen = network()
    frozen.model[0].bias.requires_grad_(False)
    others: list[Callable[[], Any]] = [
        lambda: signature("gauss_newton", network()),
        lambda: signature("hessian", network(width=9)),
        lambda: signature("hessian", network(rows=13)),
        lambda: signature("hessian", network(act=nn.ReLU)),
        lambda: signature("hessian", network(mode="frozen")),
        lambda: signature("hessian", network().in_double()),
        lambda: signature("hessian", network().restricted(["0.weight"])),
    ]
    found = {other() for other in others}
    assert base not in found
    assert len(found) == len(others)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert signature("hessian", network()) != base
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("make", [hessian, gauss_newton])
def test_every_method_of_a_real_network_is_compared_and_the_products_stay_right(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product_choice, "_MEASURED", {})
    of, V = network(), torch.randn(59 + 8, 3, generator=torch.Generator().manual_seed(1))
    operator, expected = make(of), make(of, method="reverse") @ V
    with operator.cached(10**7):
        tried = {(t.method, t.width) for t in operator.choice.trials if not t.refused}
        torch.testing.assert_close(operator @ V, expected, rtol=1e-4, atol=1e-5)
    exact = {("reverse", 1), ("batched", 2), ("batched", 8), ("forward", 1)}
    if make is hessian:
        exact |= {("forward", 8), ("linearize", 1), ("linearize", 8)}
    assert tried == exact
    assert operator.method in {t.method for t in operator.choice.trials}
