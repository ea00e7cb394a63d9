"""Zeroth-order stability: the exact second-moment map, simulated optimizers, bounds and domains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from lossscope.probes.errors import ProbeError
from lossscope.probes.sharpness.zeroth_order import (
    zeroth_order_bounds,
    zeroth_order_interval,
    zeroth_order_rate,
    zeroth_order_ratio,
)
from lossscope.probes.statistics.estimate import Estimate, exact_estimate

Array = NDArray[np.float64]
SPECTRUM = (3.0, 1.0, 0.5, 0.2, 0.1)
SETTINGS = {
    "descent": (0.0, 0.0),
    "heavy ball": (0.8, 0.0),
    "ema": (0.9, 0.9),
    "dampened": (0.6, 0.3),
}


def second_moment_radius(eigenvalues: Array, lr: float, b: float, d: float) -> float:
    """Return the spectral radius of the map of E[z z'] over one step, z = (x, B), in a basis of symmetric matrices.

    The step is z -> (A + C u u' [H 0]) z with u Gaussian, so E[u u' S u u'] = 2 S + tr(S) I.
    """
    n = len(eigenvalues)
    H = np.diag(eigenvalues)
    eye, zero = np.eye(n), np.zeros((n, n))
    A = np.block([[eye, -lr * b * eye], [zero, b * eye]])
    C = (1 - d) * np.vstack([-lr * eye, eye])
    pick = np.hstack([H, zero])

    def step(M: Array) -> Array:
        S = pick @ M @ pick.T
        cross = C @ pick @ M @ A.T
        noise = C @ (2 * S + np.trace(S) * eye) @ C.T
        return A @ M @ A.T + cross + cross.T + noise

    basis = [(i, j) for i in range(2 * n) for j in range(i, 2 * n)]
    columns = []
    for i, j in basis:
        M = np.zeros((2 * n, 2 * n))
        M[i, j] = M[j, i] = 1.0
        out = step(M)
        columns.append([out[k, m] for k, m in basis])
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())


@given(
    eigenvalues=st.lists(st.floats(0, 100), min_size=1, max_size=8).filter(lambda found: max(found) > 1e-3),
    known=st.integers(1, 8),
)
@settings(max_examples=80, deadline=None)
def test_every_known_eigenvalue_narrows_the_interval_around_the_edge(eigenvalues: list[float], known: int) -> None:
    edge, trace = zeroth_order_rate(eigenvalues), exact_estimate(sum(eigenvalues))
    top = [exact_estimate(one) for one in sorted(eigenvalues, reverse=True)]
    widest = zeroth_order_bounds(trace, top[0])
    found, more = (zeroth_order_interval(trace, top[:count]) for count in (known, known + 1))
    ends = [widest[0], found.low, more.low, edge, more.high, found.high, widest[1]]
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(ends))
    assert found.low <= found.value <= found.high
    if known >= len(eigenvalues):
        assert (found.low, found.high) == (pytest.approx(edge, rel=1e-9), pytest.approx(edge, rel=1e-9))


def test_errors_of_trace_and_eigenvalues_widen_the_interval_and_its_reason_is_kept() -> None:
    trace = Estimate(4.8, 0.1, 4.6, 5.0, 9, "standard error")
    top = [Estimate(x, math.nan, x - 0.1, x + 0.1, 0, "residual", converged=x > 1, cause="budget") for x in (3.0, 1.0)]
    found = zeroth_order_interval(trace, top)
    for eigenvalues in ([3.1, 0.9, 0.9, 0.1], [2.9, 0.9, *([0.01] * 80)], [3.0, 1.0, 0.5, 0.3]):
        assert 4.6 <= sum(eigenvalues) + 1e-9 <= 5.0 + 1e-8
        assert found.low <= zeroth_order_rate(eigenvalues) <= found.high
    assert (found.converged, found.cause, found.samples) == (False, "budget", 9)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("eigenvalues", [SPECTRUM, (2.0,), (1.0, 1.0, 1.0)])
def test_the_second_moment_shrinks_below_the_edge_and_grows_above_it(name: str, eigenvalues: tuple[float, ...]) -> None:
    b, d = SETTINGS[name]
    edge = zeroth_order_rate(eigenvalues, momentum=b, dampening=d)
    found = [second_moment_radius(np.array(eigenvalues), factor * edge, b, d) for factor in (0.999, 1.0, 1.001)]
    assert found[0] < 1 < found[2]
    assert found[1] == pytest.approx(1, abs=1e-9)
    assert zeroth_order_ratio(eigenvalues, edge, momentum=b, dampening=d) == pytest.approx(1, rel=1e-9)


def test_the_known_value() -> None:
    assert zeroth_order_rate(SPECTRUM) == pytest.approx(0.2035286, abs=5e-8)
    assert zeroth_order_rate([2.0]) == pytest.approx(1 / 3)  # one dimension: E u^4 = 3, so 1 - 2 lr l + 3 (lr l)^2 < 1


@pytest.mark.parametrize("name", ["descent", "ema"])
def test_many_runs_of_the_optimizer_shrink_in_the_mean_below_and_grow_above(name: str) -> None:
    """The optimizer itself: losses at two points, a step along u; the mean over many paths of |x|^2."""
    b, d = SETTINGS[name]
    H, steps = np.array((1.0, 0.5, 0.5, 0.2, 0.2)), {"descent": 40, "ema": 120}[name]
    edge = zeroth_order_rate(H, momentum=b, dampening=d)
    noise = np.random.default_rng(0)
    ends = []
    for factor in (0.6, 1.5):
        x, B = np.ones((20_000, len(H))), np.zeros((20_000, len(H)))
        for _ in range(steps):
            u, mu = noise.standard_normal(x.shape), 1e-3
            above, below = (((x + s * mu * u) ** 2 @ H) / 2 for s in (1, -1))
            B = b * B + (1 - d) * ((above - below) / (2 * mu))[:, None] * u
            x = x - factor * edge * B
        ends.append(float((x**2).sum(1).mean()) / len(H))
    assert ends[0] < 0.7
    assert ends[1] > 1.5


@given(
    eigenvalues=st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda found: max(found) > 1e-3),
    name=st.sampled_from(sorted(SETTINGS)),
)
@settings(max_examples=60, deadline=None)
def test_trace_and_largest_eigenvalue_bound_the_edge_inside_its_domain(eigenvalues: list[float], name: str) -> None:
    b, d = SETTINGS[name]
    edge = zeroth_order_rate(eigenvalues, momentum=b, dampening=d)
    trace, top = exact_estimate(sum(eigenvalues)), exact_estimate(max(eigenvalues))
    low, high = zeroth_order_bounds(trace, top, momentum=b, dampening=d)
    assert low * (1 - 1e-12) <= edge <= high * (1 + 1e-12)
    assert edge * (1 - d) / (1 - b) * max(eigenvalues) < 1 + b
    scaled = zeroth_order_rate([7 * one for one in eigenvalues], momentum=b, dampening=d)
    assert scaled == pytest.approx(edge / 7, rel=1e-9)
    wide = zeroth_order_bounds(
        Estimate(trace.value, 0.1, 0.9 * trace.value, 1.1 * trace.value, 9, "standard error"),
        top,
        momentum=b,
        dampening=d,
    )
    assert wide[0] <= low
    assert wide[1] >= high


def test_the_domains_are_those_of_each_rule() -> None:
    for (b, d), edge in (((0.0, 0.0), 1.0), ((0.8, 0.0), 1 - 0.8**2), ((0.9, 0.9), 1.9)):
        inside, outside = (zeroth_order_ratio([1.0], f * edge, momentum=b, dampening=d) for f in (0.999, 1.001))
        assert math.isfinite(inside)
        assert outside == math.inf


def test_a_flat_direction_and_the_order_of_eigenvalues_change_nothing() -> None:
    edge = zeroth_order_rate(SPECTRUM)
    assert all(zeroth_order_rate([*one, 0.0]) == pytest.approx(edge) for one in itertools.permutations(SPECTRUM, 5))


def test_an_uncertain_trace_that_reaches_zero_has_no_upper_bound() -> None:
    trace = Estimate(1.0, 1.0, -1.0, 3.0, 4, "standard error")
    assert zeroth_order_bounds(trace, exact_estimate(1.0)) == (2 / 5, math.inf)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: zeroth_order_ratio([1.0], 0.0), "lr must be finite and above 0, got 0"),
        (lambda: zeroth_order_ratio([1.0], 1.0, momentum=1.0), r"momentum must be in \[0, 1\), got 1"),
        (lambda: zeroth_order_ratio([1.0], 1.0, dampening=-0.1), r"dampening must be in \[0, 1\), got -0.1"),
        (lambda: zeroth_order_ratio([1.0, -0.1], 1.0), "eigenvalues must be finite and at least 0, got -0.1"),
        (lambda: zeroth_order_interval(exact_estimate(1.0), []), "the largest eigenvalue at least, got none"),
        (lambda: zeroth_order_interval(exact_estimate(0.0), [exact_estimate(0.0)]), "upper end of trace"),
        (lambda: zeroth_order_rate([]), "eigenvalues must be at least one number"),
        (lambda: zeroth_order_rate([0.0, 0.0]), "eigenvalues must not all be 0"),
        (lambda: zeroth_order_bounds(exact_estimate(math.nan), exact_estimate(1.0)), "upper end of trace"),
        (lambda: zeroth_order_bounds(exact_estimate(1.0), exact_estimate(0.0)), "upper end of lambda_max"),
    ],
)
def test_what_is_out_of_range_is_rejected(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ProbeError, match=words):
        call()
