from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lossscope.probes.errors import ProbeError
from lossscope.probes.objective.objective import Objective
from lossscope.probes.sharpness import stability_thresholds as stability
from lossscope.probes.sharpness.directional import directional_sharpness
from lossscope.probes.sharpness.stability_thresholds import Threshold, edge_ratio
from lossscope.probes.statistics.estimate import Estimate, exact_estimate, mean_estimate

LR, B = 0.3, 0.9
SPECTRUM = np.array([1.0, 0.4, 0.07])  # times the largest eigenvalue


def hessian(largest: float) -> np.ndarray:
    """Return a dense positive definite matrix with the given largest eigenvalue."""
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    return (Q * (largest * SPECTRUM)) @ Q.T


def iteration(step: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the matrix of a linear step (x, buffer) -> (x, buffer)."""
    columns = []
    for unit in np.eye(6):
        x, buffer = step(unit[:3], unit[3:])
        columns.append(np.concatenate([x, buffer]))
    return np.array(columns).T


def gradient_descent(H: np.ndarray) -> np.ndarray:
    return iteration(lambda x, m: (x - LR * H @ x, 0 * m))


def heavy_ball(H: np.ndarray, dampening: float = 0.0) -> np.ndarray:
    def step(x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = B * m + (1 - dampening) * H @ x
        return x - LR * m, m

    return iteration(step)


def nesterov(H: np.ndarray) -> np.ndarray:
    def step(x: np.ndarray, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = B * m + H @ x
        return x - LR * (H @ x + B * m), m

    return iteration(step)


def frozen_sam(H: np.ndarray, rho: float, norm: float) -> np.ndarray:
    return iteration(lambda x, m: (x - LR * H @ (x + rho * H @ x / norm), 0 * m))


CASES = {
    "gradient descent": (stability.gradient_descent(LR), gradient_descent),
    "heavy ball": (stability.heavy_ball(LR, B), heavy_ball),
    "dampened heavy ball": (stability.heavy_ball(LR, B, 0.4), lambda H: heavy_ball(H, 0.4)),
    "ema momentum": (stability.ema_momentum(LR, B), lambda H: heavy_ball(H, B)),
    "nesterov": (stability.nesterov(LR, B), nesterov),
    "sam": (stability.sam(LR, 0.05, 0.7), lambda H: frozen_sam(H, 0.05, 0.7)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_iteration_on_a_quadratic_converges_below_the_threshold_and_diverges_above(name: str) -> None:
    threshold, matrix = CASES[name]
    assert (threshold.quantity, threshold.evidence) == ("lambda_max", "theorem")
    radii = [np.abs(np.linalg.eigvals(matrix(hessian(f * threshold.value)))).max() for f in (0.999, 1.001)]
    assert radii[0] < 1 < radii[1]
    assert radii[1] < 1.2  # the root leaves the circle here, not below


def test_frozen_adam_is_stable_up_to_38_over_lr_in_its_own_metric() -> None:
    threshold = stability.frozen_adam(LR, 0.9)
    assert threshold.value == pytest.approx(38 / LR)
    P = np.array([0.01, 1.0, 3.0])
    for factor, stable in ((0.999, True), (1.001, False)):
        H = hessian(1.0)
        H *= factor * threshold.value / np.linalg.eigvalsh(H / np.sqrt(np.outer(P, P))).max()

        def step(x: np.ndarray, m: np.ndarray, H: np.ndarray = H) -> tuple[np.ndarray, np.ndarray]:
            m = 0.9 * m + 0.1 * H @ x
            return x - LR * m / P, m

        assert (float(np.abs(np.linalg.eigvals(iteration(step))).max()) < 1) is stable


@given(lam=st.floats(0.1, 30), rho=st.floats(0.001, 0.5), x=st.floats(1e-3, 10))
@settings(max_examples=100, deadline=None)
def test_a_step_of_sam_moves_away_from_a_minimum_exactly_above_its_threshold(lam: float, rho: float, x: float) -> None:
    threshold = stability.sam(LR, rho, lam * x).value
    after = abs(x - LR * lam * (x + rho))
    if abs(lam / threshold - 1) > 1e-9:
        assert (after < x) is (lam < threshold)


def test_sam_without_a_radius_is_gradient_descent_and_a_smaller_gradient_bears_less() -> None:
    assert stability.sam(LR, 0.0, 1.0).value == stability.gradient_descent(LR).value
    values = [stability.sam(LR, 0.1, norm).value for norm in (1e6, 1.0, 1e-3, 1e-9)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(2 / LR, rel=1e-5)
    long_and_bartlett = 1.0 / 0.2 * (math.sqrt(1 + 0.8 / LR) - 1)
    assert values[1] == pytest.approx(long_and_bartlett, rel=1e-12)


def quadratic_change(H: np.ndarray, x: np.ndarray, step: np.ndarray) -> float:
    after = x + step
    return float(after @ H @ after - x @ H @ x) / 2


@pytest.mark.parametrize(("x", "rises"), [(0.51 * LR, False), (0.49 * LR, True)])
def test_sign_descent_raises_an_isotropic_quadratic_exactly_above_the_threshold(x: float, rises: bool) -> None:
    H, at = 2.0 * np.eye(4), np.full(4, x)
    g = H @ at
    sharpness = 4 * 2.0  # the trace: attained at every vertex of the cube
    ratio = edge_ratio(exact_estimate(sharpness / float(np.abs(g).sum())), stability.normalized(LR))
    assert (ratio.value > 1) is rises
    assert (quadratic_change(H, at, -LR * np.sign(g)) > 0) is rises


@pytest.mark.parametrize(("curvature", "rises"), [(1.99 / LR, False), (2.01 / LR, True)])
def test_steps_along_the_dual_direction_rise_exactly_above_the_threshold_of_their_norm(
    curvature: float, rises: bool
) -> None:
    H, at = curvature / 4 * np.eye(4), np.ones(4)  # sharpness in the maximum norm: the trace
    g = H @ at
    assert (curvature > stability.non_euclidean(LR).value) is rises
    assert (quadratic_change(H, at, -LR * np.abs(g).sum() * np.sign(g)) > 0) is rises


def test_the_threshold_of_a_logged_step_is_r_dir_at_one() -> None:
    H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)

    class Point(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = torch.nn.Parameter(torch.tensor([1.0, -0.3], dtype=torch.float64))

    objective = Objective(Point(), lambda m, _: m.x @ H @ m.x / 2, [torch.zeros(1)])
    d = torch.tensor([0.7, 0.4], dtype=torch.float64)
    found = directional_sharpness(objective, -LR * d)
    form = float(d @ H @ d) / float(objective.gradient() @ d)
    assert form / stability.logged_step(LR).value == pytest.approx(found.edge_ratio.value, rel=1e-12)


def test_batch_sharpness_settles_at_levels_that_are_called_empirical() -> None:
    levels = [
        stability.batch_sharpness_threshold(LR),
        stability.momentum_batch_sharpness_threshold(LR, B, "small"),
        stability.momentum_batch_sharpness_threshold(LR, B, "large"),
    ]
    assert {(t.quantity, t.evidence) for t in levels} == {("batch_sharpness", "empirical")}
    assert [t.value for t in levels] == pytest.approx([2 / LR, 2 * (1 - B) / LR, 2 * (1 + B) / LR])
    with pytest.raises(ProbeError, match=r"regime must be one of .*, got 'middle'"):
        stability.momentum_batch_sharpness_threshold(LR, B, "middle")  # type: ignore[arg-type]


def test_an_edge_ratio_carries_the_error_over() -> None:
    drawn = mean_estimate([1.0, 2.0, 4.0])
    found = edge_ratio(drawn, 4.0)
    expected = [x / 4 for x in (drawn.value, drawn.stderr, drawn.low, drawn.high)]
    assert [found.value, found.stderr, found.low, found.high] == expected
    assert (found.samples, found.bound, found.residual) == (3, "standard error", None)
    ritz = Estimate(19.0, math.nan, 18.0, 20.0, 0, "residual", residual=1.0, products=7, converged=False)
    found = edge_ratio(ritz, stability.gradient_descent(0.1))
    assert (found.value, found.low, found.high, found.residual) == (0.95, 0.9, 1.0, 0.05)
    assert (found.products, found.converged) == (7, False)
    assert math.isnan(edge_ratio(exact_estimate(math.nan), 1.0).value)


@pytest.mark.parametrize("line", [0.0, -1.0, math.nan, math.inf])
def test_nothing_is_divided_by_a_threshold_that_is_none(line: float) -> None:
    with pytest.raises(ProbeError, match="threshold must be finite and above 0"):
        edge_ratio(exact_estimate(1.0), line)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability.gradient_descent(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.heavy_ball(-1.0, 0.9), "lr must be finite and above 0, got -1"),
        (lambda: stability.nesterov(math.nan, 0.9), "lr must be finite and above 0, got nan"),
        (lambda: stability.heavy_ball(0.1, 1.0), r"momentum must be in \[0, 1\), got 1"),
        (lambda: stability.heavy_ball(0.1, 0.5, -0.1), r"dampening must be in \[0, 1\), got -0.1"),
        (lambda: stability.ema_momentum(0.1, -0.1), r"beta must be in \[0, 1\), got -0.1"),
        (lambda: stability.frozen_adam(0.1, math.nan), r"beta1 must be in \[0, 1\), got nan"),
        (lambda: stability.frozen_adam(math.inf, 0.9), "lr must be finite and above 0, got inf"),
        (lambda: stability.sam(0.1, -0.1, 1.0), "rho must be finite and at least 0, got -0.1"),
        (lambda: stability.sam(0.1, 0.1, 0.0), "gradient_norm must be finite and above 0, got 0"),
        (lambda: stability.normalized(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.non_euclidean(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.logged_step(0.0), "lr must be finite and above 0, got 0"),
        (lambda: stability.batch_sharpness_threshold(0.0), "lr must be finite and above 0, got 0"),
    ],
)
def test_settings_out_of_range_are_rejected(call: Callable[[], Threshold], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        call()
