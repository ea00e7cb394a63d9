from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lossscope.probes import held_products, product_choice, product_trial
from lossscope.probes.evaluation import Pass
from lossscope.probes.gauss_newton import gauss_newton
from lossscope.probes.held_products import HeldProducts
from lossscope.probes.hessian import hessian
from lossscope.probes.loss import CrossEntropy
from lossscope.probes.objective import Objective
from lossscope.probes.product_choice import signature
from lossscope.probes.product_method import BatchProduct, Method

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

        def prepare(objective: Objective, at: Pass) -> BatchProduct:
            self.seconds += setup
            self.prepared.append(name)
            return BatchProduct(multiply, bytes=size)

        return Method(name, prepare, **facts)


@pytest.fixture(name="clock")
def a_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(product_choice, "_MEASURED", {})
    monkeypatch.setattr(product_trial, "_LOADED", set())
    for module in (product_choice, product_trial, held_products):
        monkeypatch.setattr(module, "now", clock)
    return clock


def objective(batches: int = 1) -> Objective:
    net = nn.Module()
    net.theta = nn.Parameter(torch.ones(N, dtype=torch.float64))
    return Objective(net, lambda m, x: (m.theta * x).square().sum(), [torch.ones(1)] * batches)


def products(*methods: Method, batches: int = 1, memory: float = 1e6, matrix: str = "test") -> HeldProducts:
    return HeldProducts(matrix, objective(batches), methods, method="auto", memory=memory)


def used(made: HeldProducts, expected: int | None) -> tuple[str, int]:
    """What a job of so many products would use, after one product that must be right."""
    V = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with made.held(expected):
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
    assert choice.seconds == pytest.approx(0.5 + 2 + 0.1 + 2 * 0.2)
    clock.prepared.clear()
    again = products(*methods)
    for expected in (200, None, 5, 10**6):
        assert used(again, expected) == ("fast", 1)
        assert again.facts.choice.seconds == 0.0
    assert set(clock.prepared) == {"fast"}  # nothing is measured twice in a process
    assert used(products(*methods, matrix="another"), None) == ("plain", 1)


def test_a_gain_of_a_few_percent_is_no_reason_to_leave_the_plain_method(clock: Clock) -> None:
    made = products(clock.method("plain", 1.0), clock.method("other", 0.97))
    assert used(made, 10**4) == ("plain", 1)
    assert made.facts.choice.why == "measured: the cheapest of 2"


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
    with made.held(expected):
        choice = made.facts.choice
    assert choice.seconds <= 0.1 * batches * (5.0 + 10.0 * expected) + 1e-9
    cheapest = min((batches * (t.setup_seconds + expected * t.column_seconds) for t in choice.trials), default=math.inf)
    mine = [t for t in choice.trials if (t.method, t.width) == (choice.method, choice.width)]
    if mine:
        assert batches * (mine[0].setup_seconds + expected * mine[0].column_seconds) <= cheapest / 0.95 + 1e-9


@pytest.mark.parametrize("wrong", [1e-5, 1e-2, 1.0, math.nan])
def test_a_silently_wrong_method_cannot_win(wrong: float, clock: Clock) -> None:
    lying = clock.method("lying", 0.01, wrong=wrong, widths=(2, 8))
    made = products(clock.method("plain", 1.0), lying, clock.method("slow", 3.0))
    assert used(made, 10**5) == ("plain", 1)
    refused = {t.method: t.refused for t in made.facts.choice.trials}
    assert refused["lying"].startswith("its product differs from that of plain by ")
    assert not refused["slow"]
    assert sum(t.method == "lying" for t in made.facts.choice.trials) == 1  # the wider block is not even tried


def test_a_method_that_raises_is_passed_over_and_the_reason_is_kept(clock: Clock) -> None:
    broken = clock.method("broken", 0.01, error="no batching rule\nfor this")
    made = products(clock.method("plain", 1.0), broken, clock.method("fast", 0.5))
    assert used(made, 1000) == ("fast", 1)
    refused = {t.method: t.refused for t in made.facts.choice.trials}
    assert refused["broken"] == "RuntimeError: no batching rule for this"


def test_a_set_up_must_be_earned_back(clock: Clock) -> None:
    methods = clock.method("plain", 1.0), clock.method("dear", 0.5, setup=100.0)
    assert used(products(*methods), 10**5) == ("dear", 1)
    for expected, best in ((100, "plain"), (199, "plain"), (300, "dear"), (None, "plain")):
        assert used(products(*methods), expected) == (best, 1)


def test_a_set_up_that_memory_cannot_keep_is_paid_for_each_product(clock: Clock) -> None:
    methods = clock.method("plain", 1.0, setup=2.0), clock.method("bare", 1.5, size=0)
    assert used(products(*methods, memory=50), 10**4) == ("bare", 1)
    assert used(products(*methods, memory=200), 10**4) == ("plain", 1)


def test_the_width_is_that_which_is_cheapest_for_each_column(clock: Clock) -> None:
    made = products(clock.method("plain", 1.0), clock.method("wide", 0.1, wide=1.6, widths=(2, 8)))
    assert used(made, 1000) == ("wide", 8)
    assert made.facts.width == 8
    assert clock.columns["wide"] % 8 == 3 + 2 * 2  # the trials of 2 and 8 columns, and a block of three as it is


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

    def slow_at_first(objective: Objective, at: Pass) -> BatchProduct:
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
    with operator.held(10**7):
        tried = {(t.method, t.width) for t in operator.choice.trials if not t.refused}
        torch.testing.assert_close(operator @ V, expected, rtol=1e-4, atol=1e-5)
    exact = {("reverse", 1), ("batched", 2), ("batched", 8), ("forward", 1)}
    if make is hessian:
        exact |= {("forward", 8), ("linearize", 1), ("linearize", 8)}
    assert tried == exact
    assert operator.method in {t.method for t in operator.choice.trials}
